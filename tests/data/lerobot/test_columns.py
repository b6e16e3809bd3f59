import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import LENGTHS
from tests.data.make import low_dim, response_of, write_json
from vla.data.lerobot import storage_v21, storage_v30
from vla.data.lerobot.columns import read_columns, read_table
from vla.data.lerobot.schema import read_info
from vla.errors import DatasetError

FIRST = "data/chunk-000/episode_000001.parquet"


def opened(root, keep=None):
    info = read_info(root)
    storage = storage_v21 if info.version == "v2.1" else storage_v30
    info = replace(info, tasks=storage.read_tasks(root))
    episodes = storage.read_episodes(root, info)
    chosen = episodes if keep is None else [episodes[i] for i in keep]
    return read_columns(root, info, chosen, ("observation.state", "action"))


@pytest.fixture
def v21(tiny_datasets, tmp_path):
    return shutil.copytree(tiny_datasets["v2.1"], tmp_path / "copy")


def change(root, column, values, type=None):
    """Replace one column of episode 1 (12 rows)."""
    table = pq.read_table(root / FIRST)
    array = pa.array(values, type) if not isinstance(values, pa.Array) else values
    pq.write_table(table.set_column(table.column_names.index(column), column, array), root / FIRST)


def test_values_are_those_written(tiny):
    columns = opened(tiny)
    written = [low_dim(e, n, 3, 3) for e, n in enumerate(LENGTHS)]
    assert np.array_equal(columns.numbers["observation.state"], np.concatenate([s for s, _ in written]))
    assert np.array_equal(columns.numbers["action"], np.concatenate([a for _, a in written]))
    assert columns.numbers["action"].dtype == np.float32
    assert columns.numbers["frame_index"].tolist() == [i for n in LENGTHS for i in range(n)]
    assert columns.numbers["timestamp"].shape == (29,)
    texts = columns.texts["response"]
    assert [texts[i] for i in range(29)] == [
        response_of(e, i) for e, n in enumerate(LENGTHS) for i in range(n)
    ]
    assert len(texts.texts) == 8


def test_selection_keeps_its_order_and_knows_rows_in_files(tiny_datasets):
    for version, first in (("v3.0", 20), ("v2.1", 0)):
        columns = opened(tiny_datasets[version], keep=[3, 0])
        assert columns.numbers["episode_index"].tolist() == [3] * 9 + [0] * 5
        assert columns.file_rows.tolist() == [*range(first, first + 9), *range(5)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_what_is_not_finite_is_named(v21, value):
    rows = [[0.0, 0.0, 0.0] for _ in range(12)]
    rows[7][2] = value
    change(v21, "action", rows, pa.list_(pa.float32(), 3))
    with pytest.raises(
        DatasetError, match=r"episode_000001.parquet: 'action' of episode 1, frame 7, dimension 2 is"
    ):
        opened(v21)
    opened(v21, keep=[0, 2])  # nobody asked for that episode


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("column", ["action", "observation.state", "timestamp"])
def test_numbers_that_float32_does_not_hold(v21, column):
    rows = [0.0] * 11 + [1e300]
    kind = pa.float64()
    if column != "timestamp":
        rows, kind = [[0.0, 0.0, one] for one in rows], pa.list_(pa.float64(), 3)
    change(v21, column, rows, kind)
    with pytest.raises(DatasetError, match=r"frame 11.* is inf, or beyond what float32 holds\. Repair"):
        opened(v21)
    opened(v21, keep=[0, 2])


def test_nan_in_a_scalar_column(v21):
    change(v21, "timestamp", [0.0] * 11 + [float("nan")], pa.float32())
    with pytest.raises(DatasetError, match=r"'timestamp' of episode 1, frame 11 is nan"):
        opened(v21)


@pytest.mark.parametrize(
    ("column", "values", "type", "message"),
    [
        (
            "action",
            [[0.0] * 4] * 12,
            pa.list_(pa.float32(), 4),
            r"'action' is float32 \[3\], but .* 4 values a row",
        ),
        (
            "action",
            [[0.0] * 3] * 11 + [[0.0]],
            pa.list_(pa.float32()),
            "row 11: 'action' has 1 values where the first",
        ),
        ("action", [[0.0] * 3] * 11 + [None], pa.list_(pa.float32()), r"row 11: 'action' is empty \(null\)"),
        ("action", ["x"] * 12, pa.string(), r"'action' is float32 \[3\], but the column has type string"),
        ("task_index", [0] * 11 + [None], pa.int64(), "column 'task_index' has 1 empty values"),
        ("task_index", [0] * 11 + [7], pa.int64(), r"use task_index \[7\], but the task list has \[0, 1\]"),
        ("episode_index", [1] * 11 + [2], pa.int64(), "episode 1 has 12 frames here, but the file holds 11"),
        (
            "episode_index",
            [1] * 5 + [2] + [1] * 6,
            pa.int64(),
            r"episode 1 are not next to each other \(row 6\)",
        ),
        ("episode_index", [5] * 12, pa.int64(), "episode 1 has 12 frames here, but the file holds 0"),
        (
            "frame_index",
            [*range(11), 12],
            pa.int64(),
            "row 11 of episode 1 should have frame_index 11, got 12",
        ),
    ],
)
def test_rows_that_contradict_the_metadata(v21, column, values, type, message):
    change(v21, column, values, type)
    with pytest.raises(DatasetError, match=message):
        opened(v21)


def test_missing_and_corrupt_files(v21):
    path = v21 / FIRST
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["action"]), path)
    with pytest.raises(DatasetError, match=r"episode_000001.parquet has no column \['action'\]"):
        opened(v21)
    pq.write_table(table.slice(0, 0), path)
    with pytest.raises(DatasetError, match="the file holds 0 rows"):
        opened(v21)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"episode_000001.parquet is not a readable parquet file"):
        opened(v21)
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"episode_000001.parquet is not a readable parquet file"):
        opened(v21)
    path.unlink()
    with pytest.raises(DatasetError, match=r"episode_000001.parquet is missing"):
        opened(v21)


def test_variable_lists_matrices_and_other_types(v21):
    """Other writers store vectors as plain lists, in float64, or as nested lists."""
    matrix = np.arange(12 * 6, dtype=float).reshape(12, 2, 3)
    change(v21, "action", [[1.0, 2.0, 3.0]] * 12, pa.list_(pa.float64()))
    change(v21, "observation.state", matrix.tolist(), pa.list_(pa.list_(pa.float64())))
    info = json.loads((v21 / "meta/info.json").read_text())
    info["features"]["observation.state"] = {"dtype": "float64", "shape": [2, 3]}
    info["features"]["words"] = {"dtype": "language", "shape": [1]}  # unknown to us: left alone
    write_json(v21 / "meta/info.json", info)
    columns = opened(v21, keep=[1])
    assert columns.numbers["action"].dtype == np.float32
    assert np.array_equal(columns.numbers["observation.state"], matrix)
    assert "words" not in columns.numbers


def test_a_vector_of_one_may_be_stored_either_way(v21):
    info = json.loads((v21 / "meta/info.json").read_text())
    info["features"]["action"]["shape"] = [1]
    write_json(v21 / "meta/info.json", info)
    change(v21, "action", [[1.0]] * 12, pa.list_(pa.float32()))
    assert opened(v21, keep=[1]).numbers["action"].shape == (12, 1)
    change(v21, "action", [1.0] * 12, pa.float32())
    assert opened(v21, keep=[1]).numbers["action"].shape == (12,)


def test_a_string_may_be_empty(v21):
    change(v21, "response", ["a"] * 11 + [None], pa.string())
    assert opened(v21, keep=[1]).texts["response"][11] == ""


def test_required_columns(v21):
    info = json.loads((v21 / "meta/info.json").read_text())
    del info["features"]["timestamp"]
    write_json(v21 / "meta/info.json", info)
    with pytest.raises(DatasetError, match=r"lists no feature \['timestamp'\]"):
        opened(v21)


def test_read_table_without_columns_reads_all(v21):
    assert "action" in read_table(v21 / FIRST).column_names
