"""Columns that nothing needs do not keep a dataset from opening; those that are needed do."""

import logging
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.data.lerobot.test_columns import FIRST, change, opened
from tests.data.make import edit_info, edit_tables, low_dim, set_column, task_of
from tests.folders import files_of
from vla.data import LeRobotDataset
from vla.errors import DatasetError


@pytest.fixture
def v21(tiny_datasets, tmp_path):
    return shutil.copytree(tiny_datasets["v2.1"], tmp_path / "copy")


def warned(root, caplog, **arguments):
    """Open a dataset; return it, and what was logged of columns that are left out, by column."""
    with caplog.at_level(logging.WARNING):
        dataset = LeRobotDataset(root, action_horizon=2, cameras=[], **arguments)
        LeRobotDataset(root, action_horizon=2, cameras=[], **arguments)  # said once, all the same
    lines = [record.getMessage() for record in caplog.records]
    assert sorted(line.split("'")[1] for line in lines) == sorted(dataset.left_out)
    return dataset


UNUSED = {
    "nan": (pa.array([0.0] * 11 + [float("nan")], pa.float32()), "float32", [1]),
    "null": (pa.array([0.0] * 11 + [None], pa.float32()), "float32", [1]),
    "null count": (pa.array([0] * 11 + [None], pa.int64()), "int64", [1]),
    "vector with inf": (pa.array([[1.0, float("inf")]] * 12), "float64", [2]),
    "another width": (pa.array([[1.0, 2.0]] * 12), "float32", [3]),
    "ragged": (pa.array([[1.0]] * 11 + [[]]), "float32", [1]),
    "texts for numbers": (pa.array(["a"] * 12), "float32", [1]),
    "numbers for texts": (pa.array([1] * 12), "string", [1]),
    "fractions for integers": (pa.array([0.5] * 12), "int64", [1]),
    "lists of texts": (pa.array([["a", "b"]] * 12), "string", [2]),
    "lists of texts, ragged": (pa.array([["a"], ["a", "b"]] * 6), "string", [1]),
    "structs": (pa.array([{"a": 1}] * 12), "float32", [1]),
    "bytes": (pa.array([b"a"] * 12), "string", [1]),
    "dates": (pa.array([0] * 12, pa.timestamp("s")), "int64", [1]),
    "unknown dtype": (pa.array([0] * 12), "language", [1]),
    "absent": (None, "float32", [1]),
}


@pytest.mark.parametrize("kind", list(UNUSED))
def test_columns_that_nothing_uses_are_left_out(v21, kind, caplog):
    values, dtype, shape = UNUSED[kind]
    if values is not None:
        for path in sorted((v21 / "data").rglob("*.parquet")):
            table = pq.read_table(path)
            own = values if path.name == "episode_000001.parquet" else values.slice(0, len(table))
            pq.write_table(table.append_column("next.reward", own), path)
    edit_info(v21, lambda info: info["features"].update({"next.reward": {"dtype": dtype, "shape": shape}}))
    before = files_of(v21)
    dataset = warned(v21, caplog)
    assert set(dataset.left_out) == {"next.reward"}
    assert "next.reward" not in dataset[0]
    assert np.array_equal(dataset[6]["observation.state"], low_dim(1, 12, 3, 3)[0][1])
    for ask in (dataset.low_dim, dataset.texts):
        with pytest.raises(DatasetError, match=r"'next.reward' .* was left out: "):
            ask("next.reward")
    if dtype in ("float32", "float64", "int64"):
        with pytest.raises(DatasetError, match=r"next\.reward"):
            LeRobotDataset(v21, action_horizon=2, cameras=[], state_key=["observation.state", "next.reward"])
    assert files_of(v21) == before


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([["a"]] * 12), "a"),
        (pa.array(["a"] * 12).dictionary_encode(), "a"),
        (pa.array(["a"] * 12, pa.large_string()), "a"),
        (pa.array([None] * 12), ""),
    ],
)
def test_texts_in_other_types(v21, values, expected):
    change(v21, "response", values)
    assert opened(v21, keep=[1]).texts["response"][3] == expected


def test_matrices_of_the_datasets_library(v21):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"observation.state": datasets.Array2D((1, 3), "float32")})
    state = low_dim(1, 12, 3, 3)[0]
    column = datasets.Dataset.from_dict({"observation.state": state[:, None]}, features).data.column(0)
    table = pq.read_table(v21 / FIRST)
    place = table.column_names.index("observation.state")
    pq.write_table(table.set_column(place, "observation.state", column.combine_chunks()), v21 / FIRST)
    edit_info(v21, lambda info: info["features"]["observation.state"].update(shape=[1, 3]))
    assert np.array_equal(opened(v21, keep=[1]).numbers["observation.state"][:, 0], state)


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
@pytest.mark.parametrize("wrong", ["absent in files", "absent", "null", "restarts", "text"])
def test_rows_are_counted_where_the_index_is_missing_or_wrong(
    tiny_datasets, tmp_path, version, wrong, caplog
):
    root = shutil.copytree(tiny_datasets[version], tmp_path / "copy")
    if wrong.startswith("absent"):
        edit_tables(root, lambda table: table.drop_columns(["index"]))
    elif wrong == "text":
        set_column(root, "index", lambda values: [str(v) for v in values], pa.string())
    else:
        set_column(root, "index", lambda values: [0 if wrong == "restarts" else None for _ in values])
    if wrong == "absent":
        edit_info(root, lambda info: info["features"].pop("index"))
    dataset = warned(root, caplog, episodes=[3, 0])
    assert [int(dataset[i]["index"]) for i in range(14)] == [*range(20, 29), *range(5)]
    assert set(dataset.left_out) == {"index"}


@pytest.mark.parametrize("value", ["null", "absent"])
@pytest.mark.parametrize("key", ["timestamp", "frame_index", "episode_index", "task_index", "action"])
def test_columns_that_are_needed_are_not(v21, key, value):
    if value == "null":
        set_column(v21, key, lambda values: [None for _ in values])
    else:
        edit_tables(v21, lambda table: table.drop_columns([key]))
    before = files_of(v21)
    with pytest.raises(DatasetError, match=key):
        LeRobotDataset(v21, action_horizon=2)
    assert files_of(v21) == before


def test_integers_that_are_declared_are_kept_exactly(v21):
    edit_info(v21, lambda info: info["features"]["action"].update(dtype="int32"))
    with pytest.raises(DatasetError, match=r"the dtype of 'action' is int32, but the column holds -?0\.\d"):
        opened(v21)
    set_column(v21, "action", lambda values: [[1.0, 2.0, 3.0]] * len(values))
    assert opened(v21).numbers["action"].dtype == np.int32


def test_episodes_without_their_tasks(tiny_datasets, tmp_path):
    """The official LIBERO dataset is stored so: the rows' task_index is what counts."""
    root = shutil.copytree(tiny_datasets["v3.0"], tmp_path / "copy")
    edit_tables(root, lambda table: table.drop_columns(["tasks"]), "meta/episodes")
    before = files_of(root)
    dataset = LeRobotDataset(root, action_horizon=2)
    assert [dataset[i]["task"] for i in (0, 5, 17, 20)] == [task_of(e) for e in range(4)]
    assert [episode.tasks for episode in dataset.episodes] == [(task_of(e),) for e in range(4)]
    assert files_of(root) == before


@pytest.mark.parametrize("wrong", [slice(0, 2), [0, 1], "0", 1.0, None, (0,)])
def test_a_frame_is_asked_for_by_its_number(v21, wrong):
    dataset = LeRobotDataset(v21, action_horizon=2, cameras=[])
    with pytest.raises(
        DatasetError, match=r"asked for by its number, got .*Subset\(dataset, range\(0, 2\)\)"
    ):
        dataset[wrong]
    assert int(dataset[np.int64(3)]["index"]) == int(dataset[torch.tensor(3)]["index"]) == 3
