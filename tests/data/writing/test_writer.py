import errno
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.data.make import CAMERAS, draw_code, low_dim, make_dataset, read_code
from tests.data.writing.recording import frame, leftovers, make_writer, record
from tests.folders import files_of, unchanged
from vla.data import LeRobotDataset
from vla.data.writing import unfinished
from vla.data.writing import writer as writer_module
from vla.errors import ConfigError, DatasetError


def test_what_is_written_is_read(tmp_path):
    dataset = LeRobotDataset(record(tmp_path / "deep" / "x"), action_horizon=2)
    assert leftovers(tmp_path / "deep") == ["x"]
    assert dataset.info.robot_type == "unknown"
    assert dataset.info.features["action"].names == ("dx", "dy", "grip")
    for n, (episode, i) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]):
        item = dataset[n]
        assert read_code(item[CAMERAS[0]]) == (episode, i, 0)
        assert item["observation.state"].tolist() == [i, 0.5]
        assert item["action"][0].tolist() == [i, 1, 2]
        assert (item["response"], item["task"]) == ("left", f"task {episode}")


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_files_roll_over_by_size(tmp_path, codec):
    root = make_dataset(
        tmp_path / "x", episodes=8, length=30, codec=codec, video_file_mb=0.002, data_file_mb=0.005
    )
    assert len(list((root / f"videos/{CAMERAS[0]}/chunk-000").iterdir())) > 1
    assert len(list((root / "data/chunk-000").iterdir())) > 1
    dataset = LeRobotDataset(root, action_horizon=2)
    assert [read_code(dataset[i][CAMERAS[1]]) for i in range(0, 240, 7)] == [
        (i // 30, i % 30, 1) for i in range(0, 240, 7)
    ]


def test_files_beyond_a_chunk_start_another(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "CHUNKS_SIZE", 2)
    root = record(tmp_path / "x", (2,) * 5, video_file_mb=0, data_file_mb=0)
    names = [
        "chunk-000/file-000",
        "chunk-000/file-001",
        "chunk-001/file-000",
        "chunk-001/file-001",
        "chunk-002/file-000",
    ]
    for folder, suffix in (("data", "parquet"), (f"videos/{CAMERAS[0]}", "mp4")):
        found = sorted(str(path.relative_to(root / folder)) for path in (root / folder).rglob("*.*"))
        assert found == [f"{name}.{suffix}" for name in names]
    dataset = LeRobotDataset(root, action_horizon=2)
    assert [read_code(dataset[i][CAMERAS[0]])[:2] for i in range(10)] == [(i // 2, i % 2) for i in range(10)]


def test_statistics_beside_the_data_are_exact(tmp_path):
    root = make_dataset(tmp_path / "x", episodes=3, length=(7, 20, 4))
    stats = json.loads((root / "meta/stats.json").read_text())
    action = np.concatenate([low_dim(e, n, 3, 3)[1] for e, n in enumerate((7, 20, 4))]).astype(float)
    assert stats["action"]["count"] == [31]
    for name, expected in {
        "mean": action.mean(0),
        "std": action.std(0),
        "q01": np.quantile(action, 0.01, axis=0),
        "q99": np.quantile(action, 0.99, axis=0),
    }.items():
        assert stats["action"][name] == pytest.approx(expected, abs=1e-12)
    assert np.shape(stats[CAMERAS[0]]["mean"]) == (3, 1, 1)
    assert stats[CAMERAS[0]]["count"] == [31]
    assert stats["episode_index"]["max"] == [2.0]


def test_layout_is_that_of_a_published_dataset(tmp_path, shared_dir):
    """Column for column and field for field as a recording made by LeRobot itself."""
    published = shared_dir / "data/bridge_mini_v3"
    cameras = [f"observation.images.image_{i}" for i in range(3)]
    mine = make_dataset(tmp_path / "x", cameras=cameras)
    for name in (
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
    ):
        ours, theirs = (
            {field.name: str(field.type).replace("[3]", "[7]") for field in pq.read_schema(root / name)}
            for root in (mine, published)
        )
        assert ours == theirs, name
        assert pq.ParquetFile(mine / name).num_row_groups >= 1
    ours, theirs = (json.loads((root / "meta/info.json").read_text()) for root in (mine, published))
    assert ours.keys() == theirs.keys()
    assert ours["features"].keys() == theirs["features"].keys()
    for key in ("data_path", "video_path", "chunks_size", "codebase_version", "data_files_size_in_mb"):
        assert ours[key] == theirs[key]
    stats, published_stats = (
        json.loads((root / "meta/stats.json").read_text()) for root in (mine, published)
    )
    assert stats.keys() == published_stats.keys()
    assert stats["action"].keys() == published_stats["action"].keys()
    # one row group per episode, as LeRobot records
    assert pq.ParquetFile(mine / "data/chunk-000/file-000.parquet").num_row_groups == 4


def test_other_readers_of_the_format(tmp_path):
    """What LeRobot's reader does: pandas for the tasks, `datasets` with declared features for the rows."""
    pandas = pytest.importorskip("pandas")
    datasets = pytest.importorskip("datasets")
    root = make_dataset(tmp_path / "x", response=True)
    tasks = pandas.read_parquet(root / "meta/tasks.parquet")
    assert tasks.iloc[1].name == "open the drawer"
    assert tasks.loc["open the drawer"].task_index == 1
    features = {
        key: datasets.Sequence(datasets.Value(f["dtype"]), length=f["shape"][0])
        if f["shape"] != [1]
        else datasets.Value(f["dtype"])
        for key, f in json.loads((root / "meta/info.json").read_text())["features"].items()
        if f["dtype"] != "video"
    }
    files = [str(path) for path in sorted((root / "data").glob("*/*.parquet"))]
    rows = datasets.Dataset.from_parquet(
        files, features=datasets.Features(features), cache_dir=str(tmp_path / "cache")
    )
    assert rows[45]["episode_index"] == 2
    assert rows[45]["response"] == "episode 2, later frame"
    episodes = datasets.Dataset.from_parquet(
        str(root / "meta/episodes/chunk-000/file-000.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert episodes[1]["dataset_from_index"] == 20
    assert episodes[1][f"videos/{CAMERAS[0]}/from_timestamp"] == 2.0


def test_nothing_is_there_before_finalize_nor_after_abort(tmp_path):
    folder = tmp_path / "x"
    writer = make_writer(folder)
    writer.add_frame(frame())
    writer.save_episode("task")
    assert not folder.exists()
    assert len(leftovers(tmp_path)) == 1
    writer.abort()
    assert leftovers(tmp_path) == []
    writer.abort()  # idempotent
    with pytest.raises(DatasetError, match="was given up and removed"):
        writer.finalize()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("how", ["complete", "given up", "failed"])
def test_a_closed_recording_takes_nothing_more(tmp_path, how):
    """What is added afterwards would be nowhere."""
    writer = make_writer(tmp_path / "x")
    writer.add_frame(frame())
    if how != "failed":
        writer.save_episode("task")
    if how == "failed":
        with pytest.raises(DatasetError, match="No episode was saved"):
            writer.finalize()
    else:
        (writer.finalize if how == "complete" else writer.abort)()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    late = {
        "add_frame": lambda: writer.add_frame(frame()),
        "save_episode": lambda: writer.save_episode("task"),
        "discard_episode": writer.discard_episode,
        "finalize": writer.finalize,
    }
    if how == "complete":
        late.pop("finalize")()  # idempotent
    for call in late.values():
        with pytest.raises(DatasetError, match=f"recording of .*x (is|was)? ?{how}.* new LeRobotWriter"):
            call()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    assert bool(before) == (how == "complete")


def test_a_failure_that_was_caught_is_told_at_the_end(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer_module.VideoEncoder, "append", full)
    writer = make_writer(tmp_path / "x").__enter__()
    writer.add_frame(frame())
    with pytest.raises(DatasetError, match="No space left"):
        writer.save_episode("task")
    with pytest.raises(DatasetError, match="failed and was removed"):
        writer.__exit__(None, None, None)
    with make_writer(tmp_path / "x") as writer:  # given up on purpose: nothing to tell
        writer.abort()
    assert leftovers(tmp_path) == []


def test_discarded_episodes_leave_no_trace(tmp_path):
    with make_writer(tmp_path / "x") as writer:
        for i in range(4):
            writer.add_frame(frame(i, 9))
        writer.discard_episode()
        for i in range(3):
            writer.add_frame(frame(i, 0))
        writer.save_episode("task")
    dataset = LeRobotDataset(tmp_path / "x", action_horizon=2)
    assert [read_code(dataset[i][CAMERAS[0]]) for i in range(3)] == [(0, i, 0) for i in range(3)]


def test_frames_are_copied(tmp_path):
    """Simulators draw every frame into the same buffer."""
    buffer, state = draw_code(0, 0, 0), np.zeros(2, np.float32)
    with make_writer(tmp_path / "x") as writer:
        for i in range(3):
            buffer[:] = draw_code(0, i, 0)
            state[:] = i
            writer.add_frame(frame(i, **{CAMERAS[0]: buffer, "observation.state": state}))
        writer.save_episode("task")
    dataset = LeRobotDataset(tmp_path / "x", action_horizon=2)
    assert [read_code(dataset[i][CAMERAS[0]])[1] for i in range(3)] == [0, 1, 2]
    assert dataset.low_dim("observation.state")[:, 0].tolist() == [0, 1, 2]


def test_an_existing_folder_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(DatasetError, match="exists already"):
        make_writer(tmp_path / "x")
    writer = make_writer(tmp_path / "y")
    writer.add_frame(frame())
    writer.save_episode("task")
    (tmp_path / "y").mkdir()
    with pytest.raises(DatasetError, match=r"was created .* is left in .*\.y\..*\.partial"):
        writer.finalize()
    assert leftovers(tmp_path)[1:] == ["x", "y"]
    with pytest.raises(DatasetError, match=r"failed. What was recorded is left in .*\.partial: record"):
        writer.add_frame(frame())
    assert (tmp_path / leftovers(tmp_path)[0] / "meta/info.json").exists()


def test_incomplete_recordings(tmp_path):
    with pytest.raises(DatasetError, match="No episode was saved"):
        make_writer(tmp_path / "x").finalize()
    writer = make_writer(tmp_path / "x")
    with pytest.raises(DatasetError, match="holds no frames"):
        writer.save_episode("task")
    writer.add_frame(frame())
    writer.save_episode("task")
    writer.add_frame(frame())
    with pytest.raises(DatasetError, match="1 frames were added after the last save_episode"):
        writer.finalize()
    assert leftovers(tmp_path) != ["x"]  # open still
    writer.discard_episode()
    writer.finalize()
    assert leftovers(tmp_path) == ["x"]


@pytest.mark.parametrize("where", ["rows", "video", "metadata"])
def test_a_full_disk_loses_nothing_that_was_saved(tmp_path, monkeypatch, where):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = make_writer(tmp_path / "x")
    target, name = {
        "rows": (writer_module.pq.ParquetWriter, "write_table"),
        "video": (writer_module.VideoEncoder, "append"),
        "metadata": (writer_module.pq, "write_table"),
    }[where]
    monkeypatch.setattr(target, name, full)
    writer.add_frame(frame())
    if where == "metadata":
        writer.save_episode("task")
    with pytest.raises(DatasetError, match="No space left on device"):
        writer.finalize() if where == "metadata" else writer.save_episode("task")
    assert len(leftovers(tmp_path)) == (where == "metadata")  # what was saved is left


def test_permissions_are_the_usual_ones(tmp_path):
    record(tmp_path / "x")
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_forgotten_finalize_is_done_when_the_writer_goes(tmp_path, caplog):
    writer = make_writer(tmp_path / "x")
    for _ in range(2):
        writer.add_frame(frame())
    writer.save_episode("task")
    writer.add_frame(frame())
    del writer
    assert leftovers(tmp_path) == ["x"]
    assert len(LeRobotDataset(tmp_path / "x", action_horizon=1)) == 2
    assert re.search(
        "left without finalize.*x has been completed now, with the 1 episodes .* 1 frames .* are not in it",
        caplog.text,
    )


def test_writers_that_are_open_at_the_end_of_the_program(tmp_path, monkeypatch, caplog):
    saved, empty, done = (make_writer(tmp_path / name) for name in ("saved", "empty", "done"))
    for writer in (saved, done):
        writer.add_frame(frame())
        writer.save_episode("task")
    done.finalize()
    with monkeypatch.context() as patch, unchanged(tmp_path):  # a forked copy leaves its parent's alone
        patch.setattr(unfinished.os, "getpid", lambda: 0)
        for writer in (saved, empty, done):
            unfinished.finish(writer)
    for writer in (saved, empty, done):
        unfinished.finish(writer)
    assert leftovers(tmp_path) == ["done", "saved"]
    assert len(LeRobotDataset(tmp_path / "saved", action_horizon=1)) == 1
    assert f"no episode was saved, so there is no dataset in {tmp_path / 'empty'}" in caplog.text
    assert str(tmp_path / "done") not in " ".join(r.getMessage() for r in caplog.records if r.levelno > 20)
    assert {saved, empty, done} <= set(unfinished._open)


def test_no_more_frames_a_second_than_can_be_told_apart(tmp_path):
    for rate in (1001, 10**12):
        with pytest.raises(ConfigError, match=f"fps must be at most 1000 frames per second, got {rate}"):
            make_writer(tmp_path / "x", fps=rate)
    assert leftovers(tmp_path) == []
    dataset = LeRobotDataset(record(tmp_path / "x", (30,), fps=1000), action_horizon=1)
    assert [read_code(dataset[i][CAMERAS[0]])[1] for i in (0, 7, 29)] == [0, 7, 29]


def test_a_task_in_the_wrong_place_is_told_where_it_belongs(tmp_path):
    with make_writer(tmp_path / "made") as writer:
        writer.add_frame(frame())
        written = files_of(tmp_path)
        for wrong in (
            lambda: writer.add_frame(frame(), "pick"),
            lambda: writer.add_frame(frame(), task="pick", timestamp=0.1),
            lambda: writer.add_frame(frame(task="pick")),
            lambda: writer.save_episode(),
        ):
            with pytest.raises(
                DatasetError, match=r'once for the whole episode: save_episode\("pick a cup"\)'
            ):
                wrong()
        assert files_of(tmp_path) == written
        writer.save_episode("pick")
    assert len(LeRobotDataset(tmp_path / "made", action_horizon=1)) == 1
