"""The claim of one recorder on the name of a recording, so that no other one writes under it meanwhile.

    .monday.recording       next to `monday`, locked while the recorder lives, and removed at its end

The lock dies with its process: a file that was left behind by one that was killed claims nothing.
"""

import fcntl
import os
import platform
from contextlib import suppress
from pathlib import Path

from vla.errors import DatasetError

_TRIES = 20


class Claim:
    """A claim that is held.

    Args:
        path: Its file.
        descriptor: The file's, locked.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def release(self) -> None:
        """Let others have the name. Idempotent."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1


def claim(folder: Path) -> Claim:
    """Claim the folder of a recording, which must not exist yet.

    Raises:
        DatasetError: It exists, or another recorder has claimed it.
        OSError: Nothing can be written next to it.
    """
    path = _file_of(folder)
    for _ in range(_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, folder)
            if _is_at(path, descriptor):  # else its holder has just removed it
                if folder.exists():
                    path.unlink()
                    raise DatasetError(f"{folder} exists already: give another folder, or remove it first.")
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
                held, descriptor = descriptor, -1
                return Claim(path, held)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
    raise DatasetError(f"{path} comes and goes: others begin and end recordings to {folder}. Give another.")


def check_unclaimed(folder: Path) -> None:
    """Raise `DatasetError` where another recorder has claimed a folder; nothing is written."""
    if _file_of(folder).exists():
        claim(folder).release()


def _file_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.recording"


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace") or "another program"
        raise DatasetError(
            f"{folder} is being recorded into already, by {holder}: give another folder, or end that one "
            "first."
        ) from None
    except OSError:  # a file system without locks: the writer still replaces no dataset that is there
        return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
