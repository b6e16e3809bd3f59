"""The claim of one process on a run's folder, so that no second one writes into it.

    running.json        {"pid": 4711, "host": "gpu3", "since": "2026-11-28T06:14:23+00:00", ...}

The file appears in one step that only one process can win (a hard link, which is atomic on NFS as well),
before anything is set up, and disappears when the run ends, however it ends. A process that is killed leaves
it behind; it is then stale, and taken over, where it can be told that its process is dead:

- on the same machine, by the process's number and start time; across containers by a file lock, which
  dies with the process;
- after a restart of the machine;
- on another machine, after a batch system has put the same job there again (SLURM's restart count).

Otherwise a person must decide, and the error says which file to remove. A process whose claim was taken over
all the same notices before it next writes, and stops.
"""

import errno
import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from vla.atomic import missing_folders, remove_empty, temporary_name, why_not_written
from vla.errors import TrainingError
from vla.train.launch import Launch

logger = logging.getLogger(__name__)

CLAIM_FILE = "running.json"

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)
_TRIES = 20


@dataclass
class Claim:
    """A claim that is held.

    Attributes:
        path: Its file.
        said: What is in it.
        lock: Descriptor of the file, locked while the process lives; None where locks do not work.
        inode: Number of the folder that it lies in.
    """

    path: Path
    said: dict[str, Any]
    lock: int | None
    inode: int

    def check(self) -> None:
        """Raise `TrainingError` where the run was taken over, moved or removed; renew a lost claim."""
        said = _read(self.path)
        if said is None:
            if self.is_lost():
                raise lost_folder(self.path.parent)
            logger.warning("%s was removed while the run continues; it is written again", self.path)
            lock = _link(self.path, self.said)
            if lock is not False:
                self._unlock()
                self.lock = lock
                return
            said = _read(self.path)
        if said is not None and said.get("token") != self.said["token"]:
            raise TrainingError(
                f"This process stops: the run {self.path.parent} was taken over by {_holder(said)}. What was "
                "written before is whole."
            )

    def is_lost(self) -> bool:
        """Return whether the folder is no longer where it was."""
        try:
            return os.stat(self.path.parent).st_ino != self.inode
        except OSError:
            return True

    def release(self) -> None:
        """Remove the file, unless it is another process's by now."""
        if self.said["pid"] == os.getpid():  # a forked child has a copy, but no claim
            said = _read(self.path)
            if said is not None and said.get("token") == self.said["token"]:
                with suppress(OSError):
                    self.path.unlink()
        self._unlock()

    def _unlock(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


@contextmanager
def claimed(folder: Path, launch: Launch) -> Iterator[Claim | None]:
    """Hold the claim on a run's folder within the block; make the folder, and remove it where it stays empty.

    Of several processes the main one claims; the others check that no other launch does, and get None.

    Args:
        folder: The run's folder.
        launch: This process among those of its run.

    Raises:
        TrainingError: Another process holds the run, or the folder cannot be made or written.
    """
    if not launch.is_main:
        said = _read(folder / CLAIM_FILE)
        if said is not None and said.get("meeting") != launch.meeting and not _is_stale(said, folder):
            raise _held(folder / CLAIM_FILE, said)
        yield None
        return
    made: list[Path] = []
    try:
        claim = _claim(folder, launch, made)
        try:
            yield claim
        finally:
            claim.release()
            if claim.is_lost():
                made.clear()  # what lies there now is somebody else's
    finally:
        remove_empty(made)


def lost_folder(folder: Path) -> TrainingError:
    """Return the error where a run's folder is no longer where it was."""
    return TrainingError(
        f"The run's folder {folder} is no longer there: it was moved, removed or replaced while the run was "
        "going on, so the run stops. Where it was moved, the checkpoints that it has are whole: move it "
        "back, or give its new place as output, and --resume continues from the newest."
    )


def _claim(folder: Path, launch: Launch, made: list[Path]) -> Claim:
    """Return the claim; `made` grows by the folders that were made for it."""
    path = folder / CLAIM_FILE
    ours = _about_us(launch)
    try:
        for _ in range(_TRIES):
            made += [one for one in _make(folder) if one not in made]
            try:
                lock = _link(path, ours)
            except FileNotFoundError:  # somebody removed the empty folder, or tidied up in it
                continue
            if lock is not False:
                return Claim(path, ours, lock, os.stat(folder).st_ino)
            said = _read(path)
            if said is None:  # released just now
                continue
            if not _is_stale(said, folder):
                raise _held(path, said)
            _discard(path, said)
    except OSError as error:
        raise TrainingError(
            f"The output folder {folder} cannot be written: {why_not_written(error, folder)}. Choose another "
            "output; nothing was changed."
        ) from error
    raise TrainingError(
        f"{path} comes and goes: other processes are starting and ending in {folder} right now. Try again "
        "when they are done, or choose another output."
    )


def _make(folder: Path) -> list[Path]:
    if folder.is_symlink() and not folder.exists():
        raise TrainingError(
            f"The output {folder} is a symbolic link to {os.readlink(folder)}, which does not exist: make "
            "that folder, or choose another output."
        )
    missing = missing_folders(folder)
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        what = "is a file" if above == folder else f"lies below the file {above}"
        raise TrainingError(f"The output {folder} {what}; choose another output.")
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _about_us(launch: Launch) -> dict[str, Any]:
    boot, pids = _boot(), _pids()
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "started": _started(os.getpid()),
        "boot": boot,
        "machine": _line("/etc/machine-id"),
        "pids": pids,
        "job": _job(os.environ),
        "meeting": launch.meeting,
        "token": uuid4().hex,
    }


def _link(path: Path, said: dict[str, Any]) -> int | bool | None:
    """Let the claim appear in one step, whole; return its lock, or False where there is one already."""
    temporary = temporary_name(path)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    taken = False
    try:
        locked = _lock(descriptor)
        os.write(descriptor, json.dumps(said | {"locked": locked}, indent=2).encode() + b"\n")
        os.fsync(descriptor)
        taken = _take_name(temporary, path)
        return (descriptor if locked else None) if taken else False
    finally:
        with suppress(OSError):
            temporary.unlink()
        if not (taken and locked):
            os.close(descriptor)


def _take_name(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return os.stat(temporary).st_nlink == 2  # NFS may have made it and lost the answer
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        try:  # no hard links: a file that must be new, which is empty for a moment, and has no lock
            with open(path, "x", encoding="utf-8") as file:
                json.dump(
                    json.loads(temporary.read_text(encoding="utf-8")) | {"locked": False}, file, indent=2
                )
        except FileExistsError:
            return False
    return True


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _discard(path: Path, stale: dict[str, Any]) -> None:
    """Remove a stale claim, and nothing but that one."""
    logger.info("%s was left behind by %s, which is dead", path, _holder(stale))
    aside = temporary_name(path)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    said = _read(aside)
    if said is not None and said.get("token") != stale.get("token"):  # somebody was quicker: it is theirs
        with suppress(OSError):
            _take_name(aside, path)
    aside.unlink(missing_ok=True)


def _is_stale(said: Mapping[str, Any], folder: Path) -> bool:
    """Return whether it is certain that the process that wrote a claim is dead."""
    ours = {"boot": _boot(), "pids": _pids(), "host": platform.node(), "machine": _line("/etc/machine-id")}
    if said.get("boot") == ours["boot"] and (ours["boot"] or said.get("host") == ours["host"]):
        if said.get("pids") == ours["pids"]:
            return not _lives(said.get("pid"), said.get("started"))
        return bool(said.get("locked")) and _is_unlocked(folder / CLAIM_FILE)
    same = all(said.get(key) and said.get(key) == ours[key] for key in ("host", "machine"))
    if same and said.get("boot") and ours["boot"]:
        return True  # it was started before the machine was
    before, now = said.get("job"), _job(os.environ)
    if not isinstance(before, dict) or now is None or before.get("id") != now["id"]:
        return False
    return isinstance(before.get("restarts"), int) and now["restarts"] > before["restarts"]


def _is_unlocked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return _lock(descriptor)
    finally:
        os.close(descriptor)


def _lives(pid: Any, started: Any) -> bool:
    """Return whether a process of this machine may still live; its number may be another process's by now."""
    if not isinstance(pid, int) or pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # somebody else's process
    now = _started(pid)
    return now is None or started is None or now == started


def _started(pid: int) -> str | None:
    """Return when a process started, in ticks of the system; None where that cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return "gone" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError, ValueError):
        return None


def _boot() -> str | None:
    return _line("/proc/sys/kernel/random/boot_id")


def _pids() -> str | None:
    """Return what tells the containers of a machine apart, each of which numbers its own processes."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return None


def _line(path: str) -> str | None:
    with suppress(OSError, ValueError):
        return Path(path).read_text(encoding="utf-8").strip() or None
    return None


def _job(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the batch system's job, and how often it was started again; None outside SLURM."""
    job, restarts = environment.get("SLURM_JOB_ID"), environment.get("SLURM_RESTART_COUNT", "0")
    if not job:
        return None
    cluster = environment.get("SLURM_CLUSTER_NAME", "")
    return {"id": f"{cluster}/{job}", "restarts": int(restarts) if restarts.isdecimal() else 0}


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a claim says, empty where it cannot be read; None where there is none."""
    try:
        said = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _holder(said: Mapping[str, Any]) -> str:
    return (
        f"process {said.get('pid', '?')} on host {said.get('host', '?')} since {said.get('since', '?')}"
        if said
        else "a process that cannot be told"
    )


def _held(path: Path, said: Mapping[str, Any]) -> TrainingError:
    return TrainingError(
        f"The run {path.parent} is held by {_holder(said)}, which trains into this folder. Wait for it, or "
        f"choose another output; if it is dead, remove {path}."
    )
