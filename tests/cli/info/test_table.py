"""Commands on tables of `datasets`: they say what they say of the same LeRobot dataset."""

import json

import datasets
import pytest

from tests.data.make import make_dataset
from tests.folders import files_of
from tests.policies.conftest import make_robot_policy
from vla.cli import main
from vla.cli.info.table_options import table_options
from vla.data import ColumnNames, LeRobotDataset, TableOptions
from vla.errors import ConfigError

NAMES = {"task": "instruction", "episode_index": "recording", "observation.state": "pose"}
COLUMNS = ["--column", "task=instruction", "--column", "episode=recording"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LeRobot dataset, the same as a table, and with other names. Read only."""
    root = tmp_path_factory.mktemp("table")
    make_dataset(root / "lerobot", episodes=2, length=6, cameras=["observation.images.top"], action_dim=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        table = LeRobotDataset(root / "lerobot", action_horizon=1).to_datasets(videos="images")
        table.save_to_disk(root / "same")
        table.rename_columns(NAMES).save_to_disk(root / "other")
    return root


@pytest.fixture
def run(capsys, monkeypatch, folder):
    """Run a command; return its status, output and complaint. No file of the tables may change."""
    monkeypatch.setenv("COLUMNS", "300")
    before = files_of(folder)

    def one(*command):
        status = main([*map(str, command)])
        said = capsys.readouterr()
        assert files_of(folder) == before
        return status, said.out, said.err

    return one


def test_info_of_a_table_that_can_be_trained_on(run, folder):
    _, said, _ = run("info", folder / "lerobot", "--json")
    status, found, _ = run("info", f"hf:{folder / 'same'}", "--json")
    assert status == 0
    truth, table = json.loads(said), json.loads(found)
    assert table.pop("columns")["observation.state"] == "list of 3 float32"
    differing = {key for key in truth if truth[key] != table[key]}
    assert differing == {"path", "version", "robot", "fingerprint"}
    assert "6 to 6 frames" in run("info", f"hf:{folder / 'same'}")[1]


def test_info_of_a_table_with_other_names(run, folder):
    status, said, _ = run("info", f"hf:{folder / 'other'}")
    assert status == 0
    assert "instruction" in said
    assert "Image" in said
    assert "To train on it, name its columns" in said
    assert "no column 'episode_index' for the episode" in said
    status, said, _ = run("info", f"hf:{folder / 'other'}", *COLUMNS, "--json")
    assert json.loads(said)["kind"] == "table"
    assert "no 'observation.state' for the state" in json.loads(said)["problem"]


def test_statistics_are_those_of_the_lerobot_dataset(run, folder):
    keys = ["--state-key", "pose", "--action-horizon", "3"]
    truth = run("stats", folder / "lerobot", "--action-horizon", "3")[1]
    status, said, _ = run("stats", f"hf:{folder / 'other'}", *COLUMNS, *keys)
    assert status == 0

    def numbers(text):
        return [[float(cell) for cell in line.split("│")[2:-1]] for line in text.splitlines() if "│" in line]

    assert numbers(said) == numbers(truth)
    assert len(numbers(said)) == 5


def test_open_loop_on_a_table(run, folder, tmp_path):
    make_robot_policy(action_horizon=3).save_pretrained(tmp_path / "policy")
    command = ("eval", tmp_path / "policy", "--camera", "top=observation.images.top", "--open-loop")
    results = []
    for name, more in (("lerobot", []), ("hf:same", [])):
        path = name.replace("hf:same", f"hf:{folder / 'same'}") if ":" in name else folder / name
        status, _, complaint = run(*command, path, *more, "--output", tmp_path / name[-4:])
        assert status == 0, complaint
        results.append(json.loads((tmp_path / name[-4:] / "open_loop.json").read_text()))
    assert results[0]["relative_error"] == results[1]["relative_error"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["info", "hf:/nowhere"], "There is no folder or file '/nowhere' for hf:/nowhere"),
        (["info", "hf:/nowhere", "--memory"], "--memory is about checkpoints, and hf:/nowhere is a dataset"),
        (["info", "SAME", "--split", "test"], "has no split 'test'; its splits are ['train']"),
        (["info", "LEROBOT", "--split", "test"], "--column, --split, --subset and --fps are for tables"),
        (["stats", "LEROBOT", "--column", "task=x"], "--column, --split, --subset and --fps are for tables"),
        (["stats", "SAME", "--column", "taks=x"], "NAME being one of task, episode, frame, timestamp"),
        (["stats", "SAME", "--column", "task"], "--column takes NAME=COLUMN"),
        (["stats", "SAME", "--fps", "-1"], "--fps must be positive, got -1"),
        (["eval", "x", "--split", "test"], "--split is about --open-loop DATASET, which is not given"),
    ],
)
def test_what_is_refused(run, folder, command, said):
    places = {"SAME": f"hf:{folder / 'same'}", "LEROBOT": str(folder / "lerobot")}
    status, _, complaint = run(*(places.get(word, word) for word in command))
    assert status == 1
    assert said in " ".join(complaint.split())


def test_options_outrank_the_recipe():
    default = TableOptions(ColumnNames(task="a", episode="b"), split="c", fps=3.0)
    found = table_options(["episode=d", "frame=e"], None, "f", None, default)
    assert found == TableOptions(ColumnNames("a", "d", "e"), "c", "f", 3.0)
    with pytest.raises(ConfigError, match="got '=x'"):
        table_options(["=x"], None, None, None)
