"""After Ctrl-C, an error, or a change of the current folder, what was saved is there."""

import os
import shutil
import threading

import pyarrow.parquet as pq
import pytest

from tests.data.make import CAMERAS, read_code
from tests.data.writing.recording import frame, leftovers, make_writer
from tests.folders import unchanged
from vla.data import LeRobotDataset
from vla.data.writing import writer as writer_module
from vla.data.writing.unfinished import finish, left_of
from vla.errors import DatasetError


def add_episode(writer, episode, save=True):
    for i in range(3):
        writer.add_frame(frame(i, episode))
    if save:
        writer.save_episode(f"task {episode}")


def within(folder, steps, **options):
    """Record in a with block."""
    with make_writer(folder, **options) as writer:
        steps(writer)


def check_recorded(folder, episodes):
    dataset = LeRobotDataset(folder, action_horizon=2)
    assert [read_code(dataset[i][CAMERAS[0]])[:2] for i in range(len(dataset))] == [
        (episode, i) for episode in range(episodes) for i in range(3)
    ]
    assert dataset.tasks == tuple(f"task {episode}" for episode in range(episodes))
    rows = [pq.read_table(path) for path in sorted((folder / "data").rglob("*.parquet"))]
    assert sum(len(table) for table in rows) == 3 * episodes
    assert leftovers(folder.parent) == [folder.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the robot fell over")])
def test_an_error_in_the_with_block_keeps_what_was_saved(tmp_path, caplog, error):
    def steps(writer):
        add_episode(writer, 0)
        add_episode(writer, 1)
        add_episode(writer, 2, save=False)
        raise error

    with pytest.raises(type(error)):
        within(tmp_path / "x", steps)
    check_recorded(tmp_path / "x", 2)
    name = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else "RuntimeError"
    assert f"ended by {name}: {tmp_path / 'x'} has been completed now, with the 2 episodes" in caplog.text
    assert "3 frames that were added after the last save_episode are not in it." in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("where", ["rows", "video", "statistics"])
@pytest.mark.parametrize("size", [100, 0])
def test_ctrl_c_while_an_episode_is_written(tmp_path, monkeypatch, caplog, where, size):
    target, name = {
        "rows": (writer_module.pq.ParquetWriter, "write_table"),
        "video": (writer_module.VideoEncoder, "append"),
        "statistics": (writer_module, "summarize"),
    }[where]
    real = getattr(target, name)

    calls = []

    def interrupted(*given, **how):
        calls.append(name)
        if len(calls) > 1:  # what completes the dataset is not interrupted again
            return real(*given, **how)
        if where == "video":  # in the middle of an episode
            real(given[0], given[1][:2])
        elif where == "rows":
            real(*given, **how)
        raise KeyboardInterrupt

    def steps(writer):
        add_episode(writer, 0)
        add_episode(writer, 1)
        monkeypatch.setattr(target, name, interrupted)
        add_episode(writer, 2)

    with pytest.raises(KeyboardInterrupt):
        within(tmp_path / "x", steps, data_file_mb=size, video_file_mb=size)
    check_recorded(tmp_path / "x", 2)
    assert "with the 2 episodes that were saved. 3 frames" in caplog.text


def test_ctrl_c_while_it_is_completed(tmp_path, monkeypatch):
    real, calls = writer_module.tasks_table, []

    def once(tasks):
        calls.append(tasks)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(tasks)

    monkeypatch.setattr(writer_module, "tasks_table", once)
    with pytest.raises(KeyboardInterrupt):
        within(tmp_path / "x", lambda writer: add_episode(writer, 0))
    check_recorded(tmp_path / "x", 1)


def test_frames_that_were_not_saved_at_the_end_of_the_with_block(tmp_path, caplog):
    def steps(writer):
        add_episode(writer, 0)
        add_episode(writer, 1, save=False)

    with pytest.raises(DatasetError, match=r"3 frames .* save_episode\(task\) keeps"):
        within(tmp_path / "x", steps)
    check_recorded(tmp_path / "x", 1)
    assert "ended by DatasetError" in caplog.text


def test_without_a_saved_episode_nothing_is_left(tmp_path, caplog):
    def steps(writer):
        add_episode(writer, 0, save=False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        within(tmp_path / "x", steps)
    assert leftovers(tmp_path) == []
    assert "no episode was saved, so there is no dataset in" in caplog.text
    assert "3 frames that were added are lost." in caplog.text


def test_what_cannot_be_completed_is_left_and_named(tmp_path, caplog):
    def steps(writer):
        add_episode(writer, 0)
        (tmp_path / "x").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        within(tmp_path / "x", steps)
    left = next(path for path in tmp_path.iterdir() if path.name.endswith(".partial"))
    assert f"x could not be completed now: {tmp_path / 'x'} could not be written" in caplog.text
    assert f"What was recorded is left in {left}." in caplog.text
    check_partial = LeRobotDataset(left, action_horizon=2)
    assert len(check_partial) == 3


def test_a_writer_that_a_thread_is_finalizing_is_left_alone_at_the_end(tmp_path, monkeypatch, caplog):
    begun, may_end = threading.Event(), threading.Event()
    real = writer_module.tasks_table

    def slowly(tasks):
        begun.set()
        may_end.wait(10)
        return real(tasks)

    monkeypatch.setattr(writer_module, "tasks_table", slowly)
    writer = make_writer(tmp_path / "x")
    add_episode(writer, 0)
    recording = threading.Thread(target=writer.finalize)
    recording.start()
    assert begun.wait(10)
    ending = threading.Thread(target=finish, args=[writer])  # as the end of the program does
    ending.start()
    ending.join(0.1)
    assert ending.is_alive()
    may_end.set()
    recording.join(10)
    ending.join(10)
    assert not ending.is_alive()
    check_recorded(tmp_path / "x", 1)
    assert caplog.records == []


def test_what_is_there_is_not_called_gone(tmp_path):
    writer = make_writer(tmp_path / "x")
    add_episode(writer, 0)
    assert left_of(writer) == f"What was recorded is left in {writer._temporary}."
    os.rename(writer._temporary, tmp_path / "x")
    assert "gone" not in left_of(writer)
    assert f"{tmp_path / 'x'} is there" in left_of(writer)
    shutil.rmtree(tmp_path / "x")
    assert left_of(writer).startswith("What was recorded is gone:")
    writer.abort()


def test_another_current_folder_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    writer = make_writer("deep/x")
    add_episode(writer, 0)
    os.chdir(tmp_path / "two")
    add_episode(writer, 1)
    with unchanged(tmp_path / "two"):
        writer.finalize()
    check_recorded(tmp_path / "one/deep/x", 2)


@pytest.mark.parametrize("task", ["", " \n\t"])
def test_an_empty_task_is_refused_and_the_frames_are_kept(tmp_path, task):
    writer = make_writer(tmp_path / "x")
    add_episode(writer, 0, save=False)
    with unchanged(tmp_path), pytest.raises(DatasetError, match="The task of episode 0 is empty"):
        writer.save_episode(task)
    writer.save_episode("task 0")
    writer.finalize()
    check_recorded(tmp_path / "x", 1)
