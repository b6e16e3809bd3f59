import errno
import logging
import os
import threading
from pathlib import Path

import pytest

from tests.folders import unchanged
from vla import atomic
from vla.atomic import SaveError, atomic_folder, atomic_write, one_at_a_time
from vla.errors import VlaError


@pytest.fixture
def full_disk(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "sync", refuse)


def test_a_file_is_replaced_in_one_step(tmp_path):
    atomic_write(tmp_path / "a.json", "old")
    atomic_write(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, full_disk):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(SaveError, match=r"a\.json: the disk is full\. Nothing was changed"):
        atomic_write(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_whole(tmp_path):
    with atomic_folder(tmp_path / "deep" / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "sub" / "a").read_text() == "a"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_folder_whose_making_fails_is_not_there(tmp_path, error):
    def make():
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("a")
            raise error

    with pytest.raises(error):
        make()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_folder(tmp_path, full_disk):
    with pytest.raises(SaveError, match="the disk is full"), atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_nothing_is_overwritten(tmp_path, taken):
    path = tmp_path / "out"
    if taken == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "mine").touch()
    with pytest.raises(VlaError, match="exists already"), atomic_folder(path):
        pytest.fail("the block must not run")
    assert len(list(tmp_path.rglob("*"))) == (1 if taken == "file" else 2)


def test_an_empty_folder_may_be_filled(tmp_path):
    with atomic_folder(tmp_path) as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "a").read_text() == "a"
    assert not list(Path(tmp_path).parent.glob(".*.tmp"))


def test_one_at_a_time_lets_the_next_one_in_when_it_ends(tmp_path):
    seen, made = [], threading.Event()

    def make(name):
        with one_at_a_time(tmp_path / "deep" / "out"):
            seen.append(f"{name} in")
            made.wait(5)
            seen.append(f"{name} out")

    threads = [threading.Thread(target=make, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    threads[1].join(0.1)
    assert len(seen) == 1
    made.set()
    for thread in threads:
        thread.join(5)
    assert [word for word in seen if word.startswith(seen[0][0])] == seen[:2]
    assert len(seen) == 4
    assert list((tmp_path / "deep").iterdir()) == []


def test_whoever_fails_lets_the_next_one_in(tmp_path):
    def fail():
        with one_at_a_time(tmp_path / "out"):
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()


def test_without_locks_it_warns_and_goes_on(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), one_at_a_time(tmp_path / "out"):
        pass
    assert "cannot be locked" in caplog.text


def test_a_folder_that_cannot_hold_a_lock(tmp_path):
    (tmp_path / "file").write_text("a")
    with pytest.raises(SaveError, match="Could not write"), one_at_a_time(tmp_path / "file" / "out"):
        pass


@pytest.mark.parametrize("target", [".", "./", "../here", "link"])
def test_the_current_folder_is_filled_and_stays_itself(tmp_path, monkeypatch, target):
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "link").symlink_to(here)
    monkeypatch.chdir(here)
    target = tmp_path / "link" if target == "link" else target
    before = here.stat().st_ino
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        (folder / "b").write_text("b")
    assert here.stat().st_ino == before
    assert sorted(path.name for path in here.iterdir()) == ["b", "sub"]
    assert (here / "sub" / "a").read_text() == "a"
    with unchanged(tmp_path), pytest.raises(SaveError, match="exists already and is not empty"):
        atomic_folder(target).__enter__()


@pytest.mark.parametrize("failing", [1, 2])
def test_the_current_folder_is_left_empty_where_filling_it_fails(tmp_path, monkeypatch, failing):
    monkeypatch.chdir(tmp_path)
    rename, calls = os.rename, []

    def fail(source, target):
        calls.append(source)
        if len(calls) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)

    def make():
        with atomic_folder(".") as folder:
            (folder / "a").write_text("a")
            (folder / "b").write_text("b")

    with pytest.raises(SaveError, match="Nothing was changed"):
        make()
    assert list(tmp_path.iterdir()) == []
