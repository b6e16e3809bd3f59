"""What is asked of a dataset: arguments of every kind, and keys that an item needs for itself."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Subset

from tests.data.make import CAMERAS, edit_info, edit_tables, make_dataset, task_of, write_jsonl
from tests.folders import files_of
from tests.fuzzing import fuzz
from vla.data import LeRobotDataset, compute_statistics, split_episodes, to_canonical
from vla.data.loading.mixture import Member, Mixture
from vla.data.notices import say_once
from vla.errors import ConfigError, DatasetError, VlaError
from vla.types import Window, as_count, as_number

H = 3


def add_column(root, key, values, type, entry):
    edit_tables(root, lambda table: table.append_column(key, pa.array([values] * len(table), type)))
    edit_info(root, lambda info: info["features"].update({key: entry}))


@pytest.mark.parametrize(
    "key",
    ["action_is_pad", "observation.state_is_pad", f"{CAMERAS[0]}_is_pad", "task"],
)
@pytest.mark.parametrize("kind", ["mask", "text"])
@pytest.mark.parametrize("window", [Window(H), Window(H, state=(-1, 0), images=(-1, 0))])
def test_columns_never_take_the_place_of_masks_or_the_instruction(tmp_path, caplog, key, kind, window):
    say_once.cache_clear()
    plain, odd = make_dataset(tmp_path / "plain", episodes=1, length=5), tmp_path / "odd"
    shutil.copytree(plain, odd)
    if kind == "mask":
        entry = {"dtype": "bool", "shape": [H], "names": None}
        add_column(odd, key, [True] * H, pa.list_(pa.bool_()), entry)
    else:
        add_column(odd, key, "other", pa.string(), {"dtype": "string", "shape": [1], "names": None})
    expected, dataset = (LeRobotDataset(root, window=window) for root in (plain, odd))
    for index in range(len(expected)):
        first, second = expected[index], dataset[index]
        assert first.keys() == second.keys()
        assert all(np.array_equal(value, second[name]) for name, value in first.items())
    assert dataset[4]["action_is_pad"].tolist() == [False, True, True]
    assert dataset[4]["task"] == task_of(0)
    assert "an item holds a mask or the instruction" in dataset.left_out[key]
    assert f"the column '{key}' is not in the items" in caplog.text
    assert dataset.low_dim(key).all() if kind == "mask" else dataset.texts(key) == ("other",)


def test_no_vector_is_called_as_the_instruction_or_a_mask(tmp_path):
    root = make_dataset(tmp_path / "set", episodes=1, length=5, cameras=())
    entry = {"dtype": "float32", "shape": [2], "names": None}
    for key in ("task", "action_is_pad"):
        add_column(root, key, [1.0, 2.0], pa.list_(pa.float32()), entry)
        with pytest.raises(ConfigError, match=f"'{key}' is named as the state"):
            LeRobotDataset(root, action_horizon=H, state_key=key)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("asked") / "set", episodes=3, length=5)


def test_columns_are_read_and_not_written(root):
    dataset = LeRobotDataset(root, action_horizon=H, cameras=[])
    before = dataset[2]
    for key in ("action", "observation.state", "timestamp"):
        with pytest.raises(ValueError, match="read-only"):
            dataset.low_dim(key).fill(0)
        dataset.low_dim(key).copy().fill(0)
    assert all(torch.equal(dataset[2][key], before[key]) for key in ("action", "timestamp"))


@pytest.mark.parametrize(
    "episodes",
    [
        [2, 0],
        (2, 0),
        np.array([2, 0]),
        torch.tensor([2, 0]),
        [torch.tensor(2), np.int64(0)],
        range(2, -1, -2),
        iter([2, 0]),
    ],
)
def test_episodes_of_any_list(root, episodes):
    found = LeRobotDataset(root, action_horizon=H, cameras=[], episodes=episodes)
    assert [episode.index for episode in found.episodes] == [2, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": [True, False]}, "Each of episodes must be a whole number, got True"),
        ({"episodes": torch.tensor([True])}, "Each of episodes must be a whole number"),
        ({"episodes": [0.0]}, "Each of episodes must be a whole number, got 0.0"),
        ({"episodes": "25"}, "episodes must be a list of whole numbers.*'25'"),
        ({"episodes": 1}, r"episodes must be a list of whole numbers, such as range\(0, 10\), got 1"),
        ({"episodes": torch.tensor(1)}, "episodes must be a list of whole numbers"),
        ({"episodes": slice(0, 2)}, "episodes must be a list"),
        ({"action_horizon": 2.0}, "action_horizon must be a whole number, got 2.0"),
        ({"action_horizon": "5"}, "action_horizon must be a whole number, got '5'"),
        ({"action_horizon": True}, "action_horizon must be a whole number, got True"),
        ({"action_horizon": 0}, "action_horizon must be at least 1, got 0"),
        ({"action_horizon": None, "window": 5}, "window must be a vla.types.Window, got 5"),
        ({"cameras": [0]}, r"cameras must be a list of texts, got \[0\]"),
        ({"cameras": CAMERAS[0]}, r"For a single one: cameras=\['observation.images.top'\]"),
        ({"cameras": 5}, "cameras must be a list of texts, got 5"),
        ({"tolerance_s": "x"}, "tolerance_s must be a finite number, got 'x'"),
        ({"tolerance_s": float("nan")}, "tolerance_s must be a finite number, got nan"),
        ({"tolerance_s": -1}, "tolerance_s must be at least 0, got -1"),
        ({"open_videos": 1.5}, "open_videos must be a whole number, got 1.5"),
    ],
)
def test_arguments_of_another_kind(root, options, message):
    before = files_of(root)
    with pytest.raises(ConfigError, match=message):
        LeRobotDataset(root, **{"action_horizon": H, **options})
    assert files_of(root) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("25", 0.5), "episodes must be a list of whole numbers"),
        ((-3, 0.5), "The number of episodes must be at least 1, got -3"),
        ((10**12, 0.5), "The number of episodes must be at most 10"),
        ((0, 0.5), "The number of episodes must be at least 1, got 0"),
        ((25.0, 0.5), "The number of episodes must be a whole number, got 25.0"),
        ((True, 0.5), "The number of episodes must be a whole number"),
        (([1, 1, 2], 0.5), "Some episodes are listed twice"),
        ((25, "0.1"), "validation_fraction must be a finite number, got '0.1'"),
        ((25, float("nan")), "validation_fraction must be a finite number"),
        ((25, 0.1, "a"), "seed must be a whole number"),
    ],
)
def test_splits_of_another_kind(arguments, message):
    with pytest.raises(ConfigError, match=message):
        split_episodes(*arguments)


def test_splits_of_arrays():
    assert split_episodes(torch.arange(10), 0.2, 3) == split_episodes(np.int64(10), 0.2, 3)


def test_functions_say_what_they_are_for(root):
    dataset = LeRobotDataset(root, action_horizon=H, cameras=[])
    with pytest.raises(ConfigError, match=r"got a Subset: choose .*episodes="):
        compute_statistics(Subset(dataset, range(3)))
    for threads, message in ((-1, "at least 1, got -1"), ("2", "whole number, got '2'"), (0, "at least 1")):
        with pytest.raises(ConfigError, match=f"threads must be.*{message}"):
            compute_statistics(dataset, threads=threads)
    with pytest.raises(ConfigError, match="pipeline_before_normalize must be a Pipeline, got a str"):
        compute_statistics(dataset, "delta")
    with pytest.raises(DatasetError, match=r"An item must be a dictionary.*got list"):
        to_canonical([1], {})
    member = Member("one", dataset, 1.0, lambda item, generator: {})
    with pytest.raises(ConfigError, match="A mixture is made of a list of Member"):
        Mixture(member)
    for weight in ("1", True, None):
        with pytest.raises(ConfigError, match="weight of 'one' in the mixture must be a finite number"):
            Mixture([Member("one", dataset, weight, member.transform)])


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_task_number_has_one_text(tiny_datasets, tmp_path, version):
    root = tmp_path / "set"
    shutil.copytree(tiny_datasets[version], root)
    if version == "v2.1":
        lines = [(root / "meta/tasks.jsonl").read_text(), json.dumps({"task_index": 1, "task": "other"})]
        (root / "meta/tasks.jsonl").write_text("".join(lines) + "\n")
    else:
        _append_task(root)
    before = files_of(root)
    with pytest.raises(DatasetError, match="task_index 1 is 'other', but 'open the drawer' before"):
        LeRobotDataset(root, action_horizon=H)
    assert files_of(root) == before


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize 12345\n" % (b"0" * 64)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_every_file_that_is_a_pointer(tiny_datasets, tmp_path, version):
    copied = shutil.copytree(tiny_datasets[version], tmp_path / "set")
    LeRobotDataset(copied, action_horizon=H)
    tried = 0
    for path in sorted(copied.rglob("*.*")):
        if not path.is_file() or "stats" in path.name:  # statistics of the dataset are not read
            continue
        content = path.read_bytes()
        path.write_bytes(POINTER)
        with pytest.raises(DatasetError, match=f"{path} is a Git LFS pointer, .*run `git lfs pull`"):
            LeRobotDataset(copied, action_horizon=H)
        path.write_bytes(content)
        tried += 1
    assert tried >= 6


@pytest.mark.parametrize("key", ["action", "timestamp", "response"])
def test_a_column_twice(tiny_datasets, tmp_path, key):
    copied = shutil.copytree(tiny_datasets["v3.0"], tmp_path / "set")
    edit_tables(copied, lambda table: table.append_column(key, table[key]))
    with pytest.raises(DatasetError, match=rf"has two columns of one name, \['{key}'\]: rename or drop one"):
        LeRobotDataset(copied, action_horizon=H, cameras=[])


def test_rows_without_a_number_and_templates_in_messages(tiny_datasets, tmp_path):
    copied = shutil.copytree(tiny_datasets["v3.0"], tmp_path / "set")
    edit_info(copied, lambda info: info["features"].pop("index"))
    dataset = LeRobotDataset(copied, action_horizon=H, cameras=[])
    assert dataset.left_out["index"] == "meta/info.json does not list it; the rows are counted."
    assert dataset.low_dim("index").tolist() == list(range(len(dataset)))
    edit_info(copied, lambda info: info.update(data_path="data/{other}.parquet"))
    with pytest.raises(DatasetError, match=r"data_path 'data/\{other\}.parquet' cannot be filled"):
        LeRobotDataset(copied, action_horizon=H, cameras=[])


def _append_task(root):
    table = pq.read_table(root / "meta/tasks.parquet").replace_schema_metadata(None)
    more = pa.table({"task_index": [1], "task": ["other"]}, schema=table.schema)
    pq.write_table(pa.concat_tables([table, more]), root / "meta/tasks.parquet")


def test_tasks_of_the_episodes_that_no_row_has(tiny_datasets, tmp_path, caplog):
    say_once.cache_clear()
    root = tmp_path / "set"
    shutil.copytree(tiny_datasets["v2.1"], root)
    LeRobotDataset(root, action_horizon=H, cameras=[])
    assert "other tasks" not in caplog.text
    lines = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
    write_jsonl(root / "meta/episodes.jsonl", [{**line, "tasks": ["foo"]} for line in lines])
    dataset = LeRobotDataset(root, action_horizon=H, cameras=[])
    assert "lists other tasks than the rows of 4 episodes ([0, 1, 2, 3]) have: the rows count" in caplog.text
    assert dataset.episodes[1].tasks == (task_of(1),)


_ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 99), st.just(10**12), st.floats(),
    st.text(max_size=3), st.binary(max_size=2),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=1), st.integers(), max_size=1),
    st.floats().map(np.float32), st.integers(-9, 9).map(torch.tensor), st.just(np.True_), st.just(object()),
)  # fmt: skip


@fuzz(examples=100)
@given(value=_ANYTHING)
def test_fuzz_arguments_are_what_they_should_be_or_refused(value):
    for check in (as_count, as_number):
        try:
            found = check(value, "it", at_least=1)
        except VlaError as error:
            assert str(error).startswith("it must be")  # noqa: PT017
        else:
            assert found == value
            assert not isinstance(value, bool | str)
    for make in (lambda: Window(value), lambda: Window(2, state=value), lambda: split_episodes(value, 0.5)):
        try:
            made = make()
        except VlaError:
            continue
        assert made
