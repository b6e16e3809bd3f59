"""storage_v21 and storage_v30 answer the same two questions; so they are tested side by side."""

import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import LENGTHS
from tests.data.make import CAMERAS, task_of, write_jsonl
from vla.data.lerobot import storage_v21, storage_v30
from vla.data.lerobot.fields import fill_template
from vla.data.lerobot.schema import read_info
from vla.errors import DatasetError

STORAGES = {"v2.1": storage_v21, "v3.0": storage_v30}


def read(root):
    info = read_info(root)
    storage = STORAGES[info.version]
    return replace(info, tasks=storage.read_tasks(root)), storage.read_episodes(root, info)


def copy_of(root, tmp_path):
    return shutil.copytree(root, tmp_path / "copy")


def test_episodes_and_tasks(tiny):
    info, episodes = read(tiny)
    assert [e.length for e in episodes] == list(LENGTHS)
    assert [e.index for e in episodes] == [0, 1, 2, 3]
    assert [e.tasks for e in episodes] == [(task_of(e.index),) for e in episodes]
    assert info.tasks == {0: task_of(0), 1: task_of(1)}
    assert info.total_tasks == 2
    for episode in episodes:
        assert set(episode.videos) == set(CAMERAS)
        assert all((tiny / span.path).exists() for span in episode.videos.values())
        assert (tiny / episode.data_path).exists()


def test_v30_spans_follow_one_another(tiny_datasets):
    _, episodes = read(tiny_datasets["v3.0"])
    starts = [e.videos[CAMERAS[0]].start for e in episodes]
    assert starts == pytest.approx([sum(LENGTHS[:i]) / 10 for i in range(4)])
    assert len({e.videos[CAMERAS[0]].path for e in episodes}) == 1


def test_totals_must_agree(tiny, tmp_path):
    root = copy_of(tiny, tmp_path)
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "total_frames": 99}))
    with pytest.raises(
        DatasetError, match=r"promises 4 episodes and 99 frames.*lists 4 episodes and 29 frames"
    ):
        read(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"episode_index": 0}, "lists episode 0 twice"), ({"length": 0, "episode_index": 3}, "has 0 frames")],
)
def test_v21_contradictory_lists(tiny_datasets, tmp_path, changes, message):
    root = copy_of(tiny_datasets["v2.1"], tmp_path)
    rows = [{"episode_index": i, "tasks": [], "length": n} for i, n in enumerate((5, 12, 3, 9))]
    rows[3] = {**rows[3], **changes}
    rows[2]["length"] += 9 - rows[3]["length"]
    write_jsonl(root / "meta/episodes.jsonl", rows)
    with pytest.raises(DatasetError, match=message):
        read(root)


@pytest.mark.parametrize("name", ["tasks", "episodes"])
def test_v21_bad_lines(tiny_datasets, tmp_path, name):
    root = copy_of(tiny_datasets["v2.1"], tmp_path)
    path = root / f"meta/{name}.jsonl"
    for content, message in (
        (b"{\n", "line 1 is not JSON"),
        (b"\xff\xfe\x00", "is not text"),
        (b'{"other": 1}\n', "line 1: '(task|episode)_index' is missing"),
        (b"[1]\n", "line 1 must hold a JSON object"),
    ):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=message):
            read(root)
    path.unlink()
    with pytest.raises(DatasetError, match="is missing"):
        read(root)


def test_v30_bad_files(tiny_datasets, tmp_path):
    root = copy_of(tiny_datasets["v3.0"], tmp_path)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["length"]), path)
    with pytest.raises(DatasetError, match=r"no column \['length'\]"):
        read(root)
    key = f"videos/{CAMERAS[0]}/from_timestamp"
    column = pa.array([0.0, None, 0.0, 0.0])
    pq.write_table(table.set_column(table.column_names.index(key), key, column), path)
    assert set(read(root)[1][1].videos) == {CAMERAS[1]}  # missed when the camera is asked for
    lengths = pa.array([5, None, 3, 9])
    pq.write_table(table.set_column(table.column_names.index("length"), "length", lengths), path)
    with pytest.raises(DatasetError, match="episode 1 has an empty field"):
        read(root)
    path.write_bytes(b"PAR1 no longer")
    with pytest.raises(DatasetError, match="not a readable parquet file"):
        read(root)
    path.unlink()
    with pytest.raises(DatasetError, match="lists no episodes"):
        read(root)


def test_v30_tasks(tiny_datasets, tmp_path):
    root = copy_of(tiny_datasets["v3.0"], tmp_path)
    path = root / "meta/tasks.parquet"
    # pandas calls an unnamed index so
    pq.write_table(pa.table({"task_index": [1, 0], "__index_level_0__": ["b", "a"]}), path)
    assert storage_v30.read_tasks(root) == {0: "a", 1: "b"}
    pq.write_table(pa.table({"task_index": [1, 0]}), path)
    with pytest.raises(DatasetError, match="must have the columns task_index and task"):
        storage_v30.read_tasks(root)
    path.unlink()
    with pytest.raises(DatasetError, match=r"tasks.parquet is missing"):
        storage_v30.read_tasks(root)


def test_templates():
    assert fill_template("a/{x:03d}", "data_path", x=7) == "a/007"
    for template in ("a/{y}", "a/{x:q}", "a/{"):
        with pytest.raises(DatasetError, match=r"data_path .* cannot be filled"):
            fill_template(template, "data_path", x=7)
