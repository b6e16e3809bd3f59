"""Who may write into a run's folder: one process, until it ends or is known to be dead."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.folders import unchanged
from vla.errors import TrainingError
from vla.train import train
from vla.train.checkpoint import claim
from vla.train.checkpoint.claim import CLAIM_FILE, claimed
from vla.train.launch import Launch

HERE = Launch()


def held(folder, **changes):
    """Write the claim of another process into a folder; by default one of this machine that is alive."""
    said = claim._about_us(HERE) | {"pid": os.getppid(), "token": "other", "locked": False}
    said |= {"started": claim._started(os.getppid()), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CLAIM_FILE).write_text(json.dumps(said))
    return said


def is_taken_over(folder):
    before = (folder / CLAIM_FILE).read_bytes()
    said = None
    try:
        with claimed(folder, HERE) as ours:
            assert json.loads((folder / CLAIM_FILE).read_text())["token"] == ours.said["token"]
    except TrainingError as error:
        said = str(error)
    if said is not None:
        assert f"if it is dead, remove {folder / CLAIM_FILE}" in said
        assert (folder / CLAIM_FILE).read_bytes() == before
        assert [path.name for path in folder.iterdir()] == [CLAIM_FILE]
        return False
    assert not (folder / CLAIM_FILE).exists()
    return True


def test_a_claim_says_who_holds_it_and_leaves_nothing(tmp_path):
    folder = tmp_path / "deep" / "run"
    with claimed(folder, HERE):
        said = json.loads((folder / CLAIM_FILE).read_text())
        assert said["pid"] == os.getpid()
        with pytest.raises(TrainingError, match=f"held by process {os.getpid()} on host .* since 20"):
            claimed(folder, HERE).__enter__()
        assert [path.name for path in folder.iterdir()] == [CLAIM_FILE]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_it_is_released_however_the_block_ends(tmp_path, error):
    (tmp_path / "run").mkdir()
    with pytest.raises(error), claimed(tmp_path / "run", HERE):
        raise error
    assert list((tmp_path / "run").iterdir()) == []


def test_what_was_there_before_stays(tmp_path):
    (tmp_path / "notes").touch()
    with claimed(tmp_path, HERE):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


BOOT, MACHINE = "another-boot", "another-machine"
JOB = {"id": "/7", "restarts": 0}
CASES = {
    # what differs from a living process of this machine, the job of this process, whether it is taken over
    "alive": ({}, None, False),
    "gone": ({"pid": 2**22 + 1}, None, True),
    "its number is another process's": ({"started": "1"}, None, True),
    "another machine": ({"host": "far", "boot": BOOT, "machine": MACHINE}, None, False),
    "another machine of the same name": ({"boot": BOOT, "machine": MACHINE}, None, False),
    "before a restart": ({"boot": BOOT}, None, True),
    "another container, no locks": ({"pids": "pid:[1]"}, None, False),
    "another container, dead": ({"pids": "pid:[1]", "locked": True}, None, True),
    "requeued": ({"host": "far", "boot": BOOT, "machine": MACHINE, "job": JOB}, ("7", "1"), True),
    "same start of the job": (
        {"host": "far", "boot": BOOT, "machine": MACHINE, "job": JOB},
        ("7", "0"),
        False,
    ),
    "another job": ({"host": "far", "boot": BOOT, "machine": MACHINE, "job": JOB}, ("8", "1"), False),
    "requeued, but alive here": ({"job": JOB}, ("7", "1"), False),
    "nonsense": ({"pid": "x", "boot": 3, "job": 5, "host": None, "machine": []}, ("7", "1"), False),
}


@pytest.mark.skipif(not os.path.exists("/proc/sys/kernel/random/boot_id"), reason="Linux says it")
@pytest.mark.parametrize("name", CASES)
def test_only_a_dead_process_loses_its_claim(tmp_path, monkeypatch, name):
    changes, job, taken_over = CASES[name]
    monkeypatch.setattr(claim, "_line", lambda path: "here" if "boot" in path else "this")
    for variable, value in zip(("SLURM_JOB_ID", "SLURM_RESTART_COUNT"), job or (), strict=False):
        monkeypatch.setenv(variable, value)
    held(tmp_path / "run", **changes)
    assert is_taken_over(tmp_path / "run") == taken_over


def test_a_lock_tells_that_a_process_of_another_container_lives(tmp_path, monkeypatch):
    with claimed(tmp_path, HERE):
        monkeypatch.setattr(claim, "_pids", lambda: "pid:[1]")
        with pytest.raises(TrainingError, match="held by"), claimed(tmp_path, HERE):
            pass


def test_an_unreadable_claim_is_not_taken_over(tmp_path):
    for content in (b"", b"\xff\x00", b"[]"):
        (tmp_path / CLAIM_FILE).write_bytes(content)
        assert not is_taken_over(tmp_path)


def test_a_process_that_was_killed_leaves_a_claim_that_is_taken_over(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from vla.train.launch import Launch;"
        "from vla.train.checkpoint.claim import claimed\n"
        "with claimed(Path(sys.argv[1]), Launch()): os.kill(os.getpid(), 9)"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")])
    assert ran.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / CLAIM_FILE).exists()
    assert is_taken_over(tmp_path / "run")


def _race(folder, won, begin):
    begin.wait()
    try:
        with claimed(folder, HERE):
            won.put(os.getpid())
            begin.wait()  # until all have tried
    except TrainingError:
        begin.wait()


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_start_at_once_one_wins(tmp_path, stale):
    if stale:
        held(tmp_path / "run", pid=2**22 + 1)
    context = multiprocessing.get_context("fork")
    won, begin = context.Queue(), context.Barrier(8)
    racers = [context.Process(target=_race, args=(tmp_path / "run", won, begin)) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(30)
        assert racer.exitcode == 0
    won.get(timeout=5)
    assert won.empty()


def test_without_hard_links_it_is_still_one(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(claim.os, "link", refuse)
    with claimed(tmp_path, HERE), pytest.raises(TrainingError, match="held by"), claimed(tmp_path, HERE):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_whose_claim_was_taken_over_stops_before_it_writes(tmp_path):
    with claimed(tmp_path, HERE) as ours:
        said = held(tmp_path, token="theirs", pid=17, host="far")
        with pytest.raises(TrainingError, match="taken over by process 17 on host far since"):
            ours.check()
    assert json.loads((tmp_path / CLAIM_FILE).read_text()) == said  # theirs stays


def test_a_claim_that_was_removed_is_renewed(tmp_path, caplog):
    with claimed(tmp_path, HERE) as ours:
        (tmp_path / CLAIM_FILE).unlink()
        ours.check()
        assert json.loads((tmp_path / CLAIM_FILE).read_text())["token"] == ours.said["token"]
    assert "written again" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_the_main_one_claims(tmp_path):
    main, other = Launch(0, 2, "a:1"), Launch(1, 2, "a:1")
    with claimed(tmp_path, main), claimed(tmp_path, other) as none:
        assert none is None
        with pytest.raises(TrainingError, match="held by"), claimed(tmp_path, Launch(1, 2, "b:1")):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [CLAIM_FILE]


@pytest.mark.parametrize("case", ["below a file", "a file", "dangling", "full", "read-only"])
def test_an_output_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, case):
    folder = tmp_path / "run"
    if case == "below a file":
        (tmp_path / "file").write_text("mine")
        folder, said = tmp_path / "file" / "deep" / "run", f"lies below the file {tmp_path / 'file'}"
    elif case == "a file":
        folder.write_text("mine")
        said = "is a file"
    elif case == "dangling":
        folder.symlink_to(tmp_path / "gone")
        said = f"is a symbolic link to {tmp_path / 'gone'}, which does not exist"
    else:
        number, said = {
            "full": (errno.ENOSPC, "the disk is full"),
            "read-only": (errno.EROFS, "Read-only file system"),
        }[case]

        def refuse(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(claim.os, "write" if case == "full" else "open", refuse)
    with unchanged(tmp_path), pytest.raises(TrainingError) as caught, claimed(folder, HERE):
        pytest.fail("nothing may be set up")
    assert said in str(caught.value)
    assert "choose another output" in str(caught.value).lower()


def test_training_claims_before_it_sets_up(tiny, tmp_path, monkeypatch):
    """The second of two runs is refused while the first is still being set up, new or resumed."""
    seen = []

    def second(*_, **__):
        for resume in (False, True):
            with pytest.raises(TrainingError) as caught:
                train(tiny(), resume=resume, progress=False)
            seen.append(str(caught.value))
        raise ZeroDivisionError

    monkeypatch.setattr("vla.train.loop.set_up", second)
    with pytest.raises(ZeroDivisionError):
        train(tiny(), progress=False)
    assert len(seen) == 2
    assert all(f"held by process {os.getpid()} on host" in one for one in seen)
    assert not (tmp_path / "run").exists()


def test_other_threads_are_other_holders(tmp_path):
    errors = []

    def second():
        try:
            with claimed(tmp_path, HERE):
                pass
        except TrainingError as error:
            errors.append(error)

    with claimed(tmp_path, HERE):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(errors) == 1
