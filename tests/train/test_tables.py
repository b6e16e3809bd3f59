"""Runs on tables of `datasets` (`data.path: hf:...`): to the bit those on the same LeRobot dataset."""

import json

import datasets
import pytest

from tests.folders import files_of
from tests.train.conftest import CAMERA, numbers
from vla.data import LeRobotDataset
from vla.errors import ConfigError, DatasetError, TrainingError
from vla.train import load_recipe, train

NAMES = {
    CAMERA: "view",
    "observation.state": "pose",
    "action": "command",
    "task": "instruction",
    "episode_index": "recording",
    "frame_index": "step",
    "timestamp": "seconds",
}
COLUMNS = [
    "data.cameras={top: view}",
    "data.state_key=pose",
    "data.action_key=command",
    "data.columns={task: instruction, episode: recording, frame: step, timestamp: seconds}",
]


@pytest.fixture(scope="module")
def table(dataset, tmp_path_factory):
    """The dataset as a table with other names, saved to disk. Read only."""
    folder = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        rows = LeRobotDataset(dataset, action_horizon=1).to_datasets(videos="images")
        rows.rename_columns(NAMES).remove_columns(["index", "task_index"]).save_to_disk(folder / "rows")
    return folder / "rows"


def test_a_run_and_its_resumption_are_those_of_the_lerobot_dataset(tiny, table, tmp_path):
    before = files_of(table)
    train(tiny(output="lerobot"), progress=False)
    path = f"data.path=hf:{table}"
    train(tiny(path, *COLUMNS, "train.steps=3", "train.decay_steps=6", output="table"), progress=False)
    more = tiny(path, *COLUMNS, "train.decay_steps=6", "data.num_workers=1", output="table")
    train(more, resume=True, progress=False)
    expected = [{**record} for record in numbers(tmp_path / "lerobot")]
    assert [r for r in numbers(tmp_path / "table") if r["step"] in (1, 2, 4, 5, 6)] == [
        r for r in expected if r["step"] in (1, 2, 4, 5, 6)
    ]
    started = json.loads((tmp_path / "table" / "reproduce.json").read_text())["starts"][0]
    assert started["recipe"]["data"]["columns"]["task"] == "instruction"
    assert load_recipe(tmp_path / "table" / "recipe.yaml").data.table == more.data.table
    assert files_of(table) == before


def test_another_table_is_not_resumed(tiny, table, tmp_path):
    train(tiny(f"data.path=hf:{table}", *COLUMNS, "train.steps=2"), progress=False)
    rows = datasets.load_from_disk(table)
    rows.select(range(24)).save_to_disk(tmp_path / "less")
    with pytest.raises(TrainingError):
        train(tiny(f"data.path=hf:{tmp_path / 'less'}", *COLUMNS), resume=True, progress=False)


def test_a_table_in_a_mixture(tiny, dataset, table, tmp_path):
    members = [
        {"path": str(dataset), "weight": 1, "name": "lerobot"},
        {
            "path": f"hf:{table}",
            "weight": 1,
            "cameras": {"top": "view"},
            "state_key": "pose",
            "action_key": "command",
            "columns": {
                "task": "instruction",
                "episode": "recording",
                "frame": "step",
                "timestamp": "seconds",
            },
        },
    ]
    recipe = tiny("data.path=''", f"data.mixture={json.dumps(members)}", "train.steps=2")
    train(recipe, progress=False)
    saved = tmp_path / "run" / "checkpoints" / "last" / "pipelines"
    assert sorted(path.name for path in saved.iterdir()) == ["lerobot", "rows"]
    statistics = [
        json.loads(next(saved.glob(f"{name}/**/statistics.json")).read_text()) for name in ("lerobot", "rows")
    ]
    assert statistics[0]["features"] == statistics[1]["features"]


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        ([*COLUMNS[:3]], DatasetError, r"no column 'episode_index' for the episode \(data\.columns\.episode"),
        ([*COLUMNS, "data.split=test"], DatasetError, r"has no split 'test'; its splits are \['train'\]"),
        ([*COLUMNS, "data.fps=5"], DatasetError, "as fps = 5 of hf:.*rows says"),
        ([*COLUMNS, "data.streaming=true"], ConfigError, "cannot be streamed: a table of `datasets`"),
        ([*COLUMNS, "data.revision=main"], DatasetError, "is local, so revision='main' means nothing"),
    ],
)
def test_tables_that_do_not_fit(tiny, table, tmp_path, overrides, error, said):
    with pytest.raises(error, match=said):
        train(tiny(f"data.path=hf:{table}", *overrides), progress=False)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.split=test"], "split is for tables of `datasets`"),
        (["data.columns.task=x"], "columns is for tables of `datasets`"),
        (["data.fps=10"], "fps is for tables of `datasets`"),
        (["data.path=hf:x", "data.fps=0"], "data.fps"),
        (["data.path=hf:x", "data.columns.state=pose"], "'state' is named by data.state_key"),
        (["data.path=hf:x", "data.columns.images={top: view}"], "'images' is named by data.cameras"),
        (["data.path=hf:x", "data.columns.taks=x"], "data.columns.taks"),
        (
            ["data.path=''", "data.mixture=[{path: a, weight: 1, subset: x}]"],
            "subset is for tables of `datasets`",
        ),
    ],
)
def test_keys_that_do_not_fit(tiny, overrides, said):
    with pytest.raises(ConfigError, match=said):
        tiny(*overrides)
