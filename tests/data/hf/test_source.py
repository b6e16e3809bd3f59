"""Where tables come from: folders, files, splits, the hub, and what is said when they cannot be read."""

import json
import re

import datasets
import pytest

from tests.data.hf.tables import KEYS, OPTIONS, make_table
from tests.folders import files_of, unchanged
from tests.hub_server import serving, speak_to
from vla.data import HuggingFaceDataset, TableOptions, open_dataset
from vla.data.hf import files
from vla.data.hf.source import is_table, open_table
from vla.errors import ConfigError, DatasetError

READ = {"options": OPTIONS, "action_horizon": 2, **KEYS}


@pytest.fixture(scope="module")
def table():
    return make_table()


def test_only_paths_that_say_so_are_tables(tmp_path):
    assert [is_table(path) for path in ("hf:x", "owner/name", tmp_path, "./hf:x")] == [
        True,
        False,
        False,
        False,
    ]


def test_splits(table, tmp_path):
    parts = {"train": table, "test": table.select(range(5))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    for name, part in parts.items():
        part.to_parquet(tmp_path / "rows" / f"{name}.parquet")
    for folder in ("saved", "rows"):
        where = f"hf:{tmp_path / folder}"
        assert len(open_dataset(where, **READ)) == 20
        test = TableOptions(OPTIONS.columns, split="test")
        assert len(open_dataset(where, **READ | {"options": test})) == 5
        with pytest.raises(
            DatasetError, match=r"has no split 'tset'; its splits are \['train', 'test'\].*'test'"
        ):
            open_table(where, TableOptions(split="tset"))
    datasets.DatasetDict({"a": table, "b": table}).save_to_disk(tmp_path / "odd")
    with pytest.raises(DatasetError, match=r"has no split 'train'; its splits are \['a', 'b'\]"):
        open_table(tmp_path / "odd", TableOptions())
    datasets.DatasetDict({"a": table}).save_to_disk(tmp_path / "one")
    assert len(open_table(tmp_path / "one", TableOptions()).rows) == 20
    table.save_to_disk(tmp_path / "plain")
    with pytest.raises(DatasetError, match="one table without splits: there is no split 'test'"):
        open_table(tmp_path / "plain", TableOptions(split="test"))
    with pytest.raises(DatasetError, match="was written by save_to_disk, which has no subsets"):
        open_table(tmp_path / "plain", TableOptions(subset="x"))


def test_parts_of_splits_as_datasets_writes_them(table, tmp_path):
    parts = {"train": table.select(range(5, 20)), "test": table.select(range(5))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    for name, part in parts.items():
        part.to_parquet(tmp_path / "rows" / f"{name}.parquet")
    expected = datasets.load_dataset(str(tmp_path / "rows"), split="train[:50%]+test[-2:]")
    prints = set()
    with unchanged(tmp_path):
        for folder in ("saved", "rows"):
            where = f"hf:{tmp_path / folder}"
            found = open_table(where, TableOptions(split="train[:50%]+test[-2:]")).rows
            assert found["step"][:] == expected["step"][:]
            both = open_dataset(where, **READ | {"options": TableOptions(OPTIONS.columns, "test+train")})
            prints.add(both.fingerprint)
            for wrong, said in (
                ("train[:50%", "Unrecognized"),
                ("tset[:2]", "its splits are ['train', 'test']"),
                ("train[:150%]", "150"),
                ("train+", "Unrecognized"),
                ("train[a:]", "Unrecognized"),
            ):
                with pytest.raises(DatasetError, match=re.escape(f"has no split '{wrong}'")) as error:
                    open_table(where, TableOptions(split=wrong))
                assert said.lower() in str(error.value).lower()
            with pytest.raises(DatasetError, match="is empty"):
                open_table(where, TableOptions(split="train[3:3]"))
    assert prints == {HuggingFaceDataset(table, **READ).fingerprint}


def test_files_of_other_kinds(table, tmp_path):
    plain = table.remove_columns("view")
    plain.to_json(tmp_path / "rows.jsonl")
    plain.to_csv(tmp_path / "rows.csv")
    found = open_dataset(f"hf:{tmp_path / 'rows.jsonl'}", **READ)
    assert found[3]["pose"].equal(HuggingFaceDataset(plain, **READ)[3]["pose"])
    with pytest.raises(DatasetError, match="'pose' cannot be the state: it is string"):
        open_dataset(f"hf:{tmp_path / 'rows.csv'}", **READ)  # lists are text there
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"is a file of an unknown kind; known are \.parquet"):
        open_dataset(f"hf:{tmp_path / 'rows.txt'}", **READ)


def test_what_is_not_there(tmp_path, recorded):
    for wrong in ("/nowhere", "~/nowhere", "~nobody-of-this-name/x", "a b"):
        with pytest.raises(
            DatasetError, match=r"There is no folder or file '.*' for hf:.*, and it is not a hub id"
        ):
            open_dataset(f"hf:{wrong}", **READ)
    with pytest.raises(DatasetError, match=r"is a LeRobot dataset.*leave out 'hf:'"):
        open_dataset(f"hf:{recorded.root}", **READ)
    for wrong in ("n" * 300, ""):
        with pytest.raises(DatasetError, match="cannot be a dataset's folder"):
            open_dataset(f"hf:{wrong}", **READ)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty cannot be read as a dataset: "):
        open_dataset(f"hf:{tmp_path / 'empty'}", **READ)
    with pytest.raises(DatasetError, match="is local, so revision='main' means nothing"):
        open_dataset(f"hf:{tmp_path / 'empty'}", **READ, revision="main")
    with pytest.raises(ConfigError, match="cannot be streamed: a table of `datasets`"):
        open_dataset(f"hf:{tmp_path / 'empty'}", **READ, streaming=True)


@pytest.mark.parametrize("damage", ["cut", "random", "state", "features", "gone"])
def test_damaged_files(table, tmp_path, damage):
    root = tmp_path / "saved"
    table.save_to_disk(root)
    arrow = next(root.glob("*.arrow"))
    if damage == "cut":
        arrow.write_bytes(arrow.read_bytes()[:100])
    elif damage == "random":
        arrow.write_bytes(bytes(range(256)) * 8)
    elif damage == "gone":
        arrow.unlink()
    elif damage == "state":
        (root / "state.json").write_text("{")
    else:
        info = json.loads((root / "dataset_info.json").read_text())
        info["features"]["pose"] = {"_type": "Sculpture"}
        (root / "dataset_info.json").write_text(json.dumps(info))
    before = files_of(root)
    where = {"cut": arrow, "random": arrow, "state": root / "state.json"}
    named = re.escape(f"{where[damage]} is damaged: ") if damage in where else ""
    with pytest.raises(DatasetError, match=rf"saved cannot be read as a dataset: {named}\S"):
        open_dataset(f"hf:{root}", **READ)
    assert files_of(root) == before


def test_damaged_parquet(table, tmp_path):
    table.to_parquet(tmp_path / "train.parquet")
    whole = (tmp_path / "train.parquet").read_bytes()
    for content in (whole[:200], b"", whole[:-9]):
        (tmp_path / "train.parquet").write_bytes(content)
        with pytest.raises(
            DatasetError, match=r"cannot be read as a dataset: \S*train\.parquet is damaged: \S"
        ):
            open_dataset(f"hf:{tmp_path}", **READ)


def test_objects_that_are_not_tables(table):
    for wrong in (datasets.DatasetDict({"train": table}), table.to_iterable_dataset(), [1], None):
        with pytest.raises(DatasetError, match=r"Expected a datasets\.Dataset, got \w+"):
            HuggingFaceDataset(wrong, **READ)
    with pytest.raises(DatasetError, match="is empty: it has no rows"):
        HuggingFaceDataset(table.select([]), **READ)
    formatted = HuggingFaceDataset(table.with_format("torch"), **READ)
    for transformed in (table.with_transform(lambda rows: rows), table.with_format("custom", transform=dict)):
        with pytest.raises(DatasetError, match=r"has a transform .*Dataset\.map"):
            HuggingFaceDataset(transformed, **READ)
    for options, said in ((TableOptions(split="x"), "split='x'"), (TableOptions(subset="y"), "subset='y'")):
        with pytest.raises(DatasetError, match=f"open already, so {said} means nothing"):
            HuggingFaceDataset(table, **READ | {"options": options})
    assert formatted.fingerprint == HuggingFaceDataset(table, **READ).fingerprint


def test_a_folder_with_a_script_of_its_name(tmp_path):
    (folder := tmp_path / "rows").mkdir()
    (folder / "rows.py").write_text("raise SystemExit")
    with pytest.raises(DatasetError, match="cannot be read as a dataset: Dataset scripts are no longer"):
        HuggingFaceDataset(f"hf:{folder}", **READ)


def test_a_dataset_of_the_hub_at_one_commit(table, tmp_path, monkeypatch):
    table.to_parquet(tmp_path / "repo" / "data" / "train-00000-of-00001.parquet")
    with serving() as hub:
        hub.add("datasets/someone/rows", tmp_path / "repo")
        commit = hub.repos["datasets/someone/rows"].sha("main")
        speak_to(hub.url, monkeypatch, tmp_path / "cache")
        found = open_dataset("hf:someone/rows", **READ)
        assert found.revision == commit
        assert found.fingerprint == HuggingFaceDataset(table, **READ).fingerprint
        assert open_dataset("hf:someone/rows", **READ, revision=commit)[4]["pose"].equal(found[4]["pose"])
        with pytest.raises(DatasetError, match="someone/nothing"):
            open_dataset("hf:someone/nothing", **READ)


def test_a_folder_with_far_more_than_a_table_is_not_walked_to_its_end(table, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_WITHOUT_TABLE", 20)
    monkeypatch.setattr(files, "MOST_ENTRIES", 60)
    deep = tmp_path / "disk" / "a" / "b"
    table.remove_columns("view").to_csv(deep / "rows.csv")
    for number in range(30):
        (deep / f"x{number}.txt").touch()
    with unchanged(tmp_path):
        with pytest.raises(
            DatasetError, match=r"disk holds more than 20 files .*on top: name the table's own"
        ):
            open_table(f"hf:{tmp_path / 'disk'}", TableOptions())
        # With the table on top, or in a folder of its own, as many files next to it are none too many.
        assert next(iter(files.files_of(deep, "it"))).name == "rows.csv"
        assert len(list(files.files_of(deep.parent, "it"))) == 31
    for number in range(30):
        (deep / f"y{number}.txt").touch()
    with pytest.raises(DatasetError, match=r"a holds more than 60 files and folders: name the table's own"):
        open_table(f"hf:{deep.parent}", TableOptions())
    (deep / ".git").mkdir()
    (deep / ".git" / "rows.csv").touch()
    monkeypatch.setattr(files, "MOST_ENTRIES", 63)
    assert len(list(files.files_of(deep, "it"))) == 61
    (deep / ".git" / "more").touch()  # load_dataset would walk through it
    with pytest.raises(DatasetError, match="it holds more than 63 files"):
        list(files.files_of(deep, "it"))


def test_a_folder_that_is_gone_while_it_is_walked(tmp_path):
    (tmp_path / "there" / "sub").mkdir(parents=True)
    for name in ("rows.csv", "sub/more.csv"):
        (tmp_path / "there" / name).touch()
    walk = files.files_of(tmp_path / "there", "hf:there")
    assert next(walk).name == "rows.csv"
    (tmp_path / "there" / "sub" / "more.csv").unlink()
    (tmp_path / "there" / "sub").rmdir()
    with pytest.raises(DatasetError, match=r"hf:there cannot be read: .*sub.*name the table's folder"):
        list(walk)


def test_what_is_named_as_the_other_kind_of_dataset(table, tmp_path, recorded):
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "rows" / "train" / "0.parquet")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    (tmp_path / "policy").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "policy" / name).write_text("{}")
    (tmp_path / "left" / "meta").mkdir(parents=True)
    table.to_parquet(tmp_path / "left" / "meta" / "tasks.parquet")
    for name, said in {
        "saved": r" It holds a table of `datasets`.*: hf:\S*saved\.",
        "rows": r" It holds a table of `datasets`.*: hf:\S*rows\.",
        "notes": "",
        "left": "",
        "policy": r" \S*policy holds a policy or a training run, which is not a dataset\.",
    }.items():
        with (
            unchanged(tmp_path),
            pytest.raises(DatasetError, match=rf"is missing: .* its description there\.{said}$"),
        ):
            open_dataset(tmp_path / name, action_horizon=2)
    with pytest.raises(
        DatasetError, match=rf"{re.escape(str(recorded.root))} is a dataset: name that folder"
    ):
        open_dataset(recorded.root / "meta", action_horizon=2)
    with unchanged(tmp_path), pytest.raises(DatasetError, match=r"holds a policy or .* is not a table"):
        open_dataset(f"hf:{tmp_path / 'policy'}", **READ)


def test_what_holds_no_rows_is_said_in_our_words(table, tmp_path):
    table.save_to_disk(tmp_path / "saved")
    (tmp_path / "notes").mkdir()
    for number in range(3):
        (tmp_path / "notes" / f"{number}.txt").touch()
    with unchanged(tmp_path):
        with pytest.raises(
            DatasetError, match=r"notes cannot be read .*: no file in it is a table \(\.parquet"
        ):
            open_dataset(f"hf:{tmp_path / 'notes'}", **READ)
        for name in ("state.json", "dataset_info.json"):
            with pytest.raises(DatasetError, match=rf"only describes the table .*hf:{tmp_path}/saved\."):
                open_dataset(f"hf:{tmp_path / 'saved' / name}", **READ)
    wide = datasets.Dataset.from_dict({f"c{number:03}": [1] for number in range(300)})
    with pytest.raises(DatasetError, match=r"it has \['c000', .* and 280 more\.") as error:
        HuggingFaceDataset(wide, **READ)
    assert len(str(error.value)) < 500
