"""What was flushed can be read whenever the program is killed, and is found afterwards."""

import os
import shutil
import signal
import subprocess
import sys

import pyarrow as pa
import pytest

from tests.data.make import CAMERAS, read_code
from tests.data.writing.recording import frame, make_writer
from vla.data import LeRobotDataset
from vla.data.writing import partial
from vla.data.writing.partial import about_leftovers, leftovers
from vla.errors import DatasetError

LEFT = ".x.abcdefg1.partial"


def add_episode(writer, episode, length=3):
    for i in range(length):
        writer.add_frame(frame(i, episode))
    writer.save_episode(f"task {episode}")


def codes(folder):
    dataset = LeRobotDataset(folder, action_horizon=2)
    assert {dataset[i]["response"] for i in range(len(dataset))} == {"left"}
    return [read_code(dataset[i][CAMERAS[0]])[:2] for i in range(len(dataset))]


def expected(episodes):
    return [(episode, i) for episode in range(episodes) for i in range(3)]


@pytest.mark.parametrize("size", [100, 0])
def test_what_was_flushed_can_be_read_while_more_is_recorded(tmp_path, size):
    writer = make_writer(tmp_path / "x", data_file_mb=size, video_file_mb=size)
    with pytest.raises(DatasetError, match="nothing to flush"):
        writer.flush()
    add_episode(writer, 0)
    add_episode(writer, 1)
    folder = writer.flush()
    (folder / "meta/more.json").write_text("{}")
    assert folder.name.startswith(".x.")
    assert codes(folder) == expected(2)
    add_episode(writer, 2)
    writer.add_frame(frame(0, 3))
    assert codes(folder) == expected(2)
    # Other readers take every table that is there.
    rows = [pa.parquet.read_table(path) for path in folder.glob("data/*/*.parquet")]
    assert sum(map(len, rows)) == 6
    assert writer.flush() == folder
    assert codes(folder) == expected(3)
    for i in (1, 2):  # the frame before is still there
        writer.add_frame(frame(i, 3))
    writer.save_episode("task 3")
    writer.finalize()
    assert codes(tmp_path / "x") == expected(4)
    assert (tmp_path / "x/meta/more.json").read_text() == "{}"
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["data", "meta", "videos"]
    assert os.listdir(tmp_path) == ["x"]


def test_killed_at_any_moment_of_a_flush_it_can_be_read(tmp_path, monkeypatch):
    """The folder is copied before and after each step that changes names, as a kill would leave it."""
    writer = make_writer(tmp_path / "x")
    add_episode(writer, 0)
    folder, copies = writer.flush(), []
    add_episode(writer, 1)
    real = os.replace

    def copy():
        copies.append(tmp_path / f"{len(copies)}" / LEFT)
        shutil.copytree(folder, copies[-1])

    def replace(source, target):
        copy()
        real(source, target)
        copy()

    monkeypatch.setattr(partial.os, "replace", replace)
    writer.flush()
    monkeypatch.undo()
    assert len(copies) == 8  # a table, a video, the metadata before, the new ones
    for number, copied in enumerate(copies):
        assert leftovers(copied.parent / "x") == [copied]
        assert codes(copied) == expected(1 if number < 5 else 2)
    writer.abort()


def test_what_was_left_is_named_but_not_what_is_being_written(tmp_path):
    writer = make_writer(tmp_path / "x")
    add_episode(writer, 0)
    copied = shutil.copytree(writer.flush(), tmp_path / LEFT)
    (tmp_path / ".x.abcdefg2.partial").mkdir()
    (tmp_path / ".xy.abcdefg2.partial").mkdir()
    said = about_leftovers(tmp_path / "x")
    assert f"{copied} is left of a recording that was killed, a dataset of its 1 finished episodes" in said
    assert f"{tmp_path / '.x.abcdefg2.partial'} is left of a recording that was killed before" in said
    assert said.count("is left") == 2
    assert about_leftovers(tmp_path / "nowhere/x") == ""
    writer.finalize()


PROGRAM = """
import os, signal, sys
from tests.data.writing.test_partial import add_episode, frame, make_writer
writer = make_writer(sys.argv[1])
add_episode(writer, 0)
writer.flush()
add_episode(writer, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_program_leaves_what_was_flushed(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "x"], timeout=120)
    assert done.returncode == -signal.SIGKILL
    (folder,) = leftovers(tmp_path / "x")
    assert codes(folder) == expected(1)
