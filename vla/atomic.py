"""Files and folders that are either whole or not there, and JSON that is whole or refused."""

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from vla.errors import VlaError

logger = logging.getLogger(__name__)

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


class SaveError(VlaError, OSError):
    """Something could not be written; whatever was there before is untouched."""


@contextmanager
def atomic_folder(target: Path | str, inside: Path | None = None) -> Iterator[Path]:
    """Yield a new folder next to `target` that takes its place when the block ends well.

    The current folder, in which a shell stands, and one that a file system is mounted on stay what they are:
    the new folder is made inside of them, and what it holds moves up.

    Args:
        target: Must not exist, or be an empty folder.
        inside: A folder above it that is never made: it was there, and may have been moved away.

    Raises:
        SaveError: `target` holds something already, the disk is full or read-only, or a folder above it was
            moved or removed in the meantime. Nothing is left behind.
    """
    target = Path(target)
    check_target(target)
    if target.is_dir():
        target = target.resolve()  # "." and links have no name that could be taken
    stays = _stays(target)
    temporary = temporary_name(target / target.name if stays else target)
    made = missing_folders(target.parent)
    try:
        if inside is not None:
            for folder in reversed([path for path in made if inside in path.parents]):
                folder.mkdir(exist_ok=True)
        temporary.mkdir(parents=inside is None)
        with _InItsPlace(temporary):
            yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                sync(path)
        if stays:
            _move_into(target, temporary)
        else:
            os.replace(temporary, target)
        with suppress(OSError):  # the folder is there, and whole; some file systems sync no folders
            sync(target.parent)
    except OSError as error:
        raise _readable(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        remove_empty(made)


class _InItsPlace:
    """Raises `FileNotFoundError` where a folder is no longer where it was at the end of a block.

    Who writes into a folder makes those above it as well; where they were moved away, their second copies
    are removed again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._held, self._before = folder, ExitStack(), {}
        # The folder itself may have been replaced by what was made next to it.
        self._above = folder.absolute().parents

    def __enter__(self) -> None:
        self._before = {path: _held(path, self._held) for path in self._above}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:
            if _is_still(self._above[0], self._before[self._above[0]]):
                return
            shutil.rmtree(self._folder, ignore_errors=True)
            remove_empty([path for path in self._above if not _is_still(path, self._before[path])])
        if error is None or isinstance(error, Exception):  # of whichever library found its file gone
            said = "a folder above it was moved or removed while it was written"
            raise FileNotFoundError(errno.ENOENT, said) from error


def _held(folder: Path, until: ExitStack) -> int | None:
    """Open a folder, so that none that is made later can have its number; None where that is not allowed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    until.callback(os.close, descriptor)
    return descriptor


def _is_still(path: Path, descriptor: int | None) -> bool:
    """Return whether a path leads to the folder that was opened; True where it could not be."""
    try:
        return descriptor is None or os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def check_target(target: Path | str) -> None:
    """Check that a new folder can be made, before the work whose result it is to hold.

    Args:
        target: Must not exist, or be an empty folder.

    Raises:
        SaveError: It is taken, a link to nothing, or lies below a file or where nothing can be written.
    """
    target = Path(target)
    try:
        if target.is_symlink() and not target.exists():
            raise SaveError(
                f"{target} is a symbolic link to {os.readlink(target)}, which does not exist: make that "
                "folder, or choose another one."
            )
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise SaveError(f"{target} exists already and is not empty; choose another folder or remove it.")
        whole = target.absolute()
        above = next(path for path in ((whole,) if _stays(target) else whole.parents) if path.exists())
    except OSError as error:
        raise _readable(error, target) from error
    if not above.is_dir():
        raise SaveError(f"Could not write {target}: {above} is a file. Nothing was changed.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise SaveError(f"Could not write {target}: {above} cannot be written. Nothing was changed.")


def _stays(target: Path) -> bool:
    """Return whether a folder cannot be replaced by another one, or must not be."""
    with suppress(OSError):  # the current folder may have been removed
        return target.is_dir() and (os.path.samefile(target, os.curdir) or os.path.ismount(target))
    return False


def _move_into(target: Path, made: Path) -> None:
    """Move all that lies in `made` up into `target`, or nothing."""
    names = sorted(os.listdir(made))
    moved: list[str] = []
    try:
        for name in names:
            os.rename(made / name, target / name)
            moved.append(name)
    finally:
        for name in moved if moved != names else ():
            os.rename(target / name, made / name)


def missing_folders(folder: Path) -> list[Path]:
    """Return a folder and those above it that do not exist yet, the deepest first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders that are empty, in the given order; leave the others alone."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def temporary_name(target: Path) -> Path:
    """Return a hidden name next to `target` that nobody else uses, and that `remove_leftovers` knows."""
    return target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder, which nobody may be writing to now."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _LEFTOVER.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(target: Path | str) -> Iterator[None]:
    """Let the processes that want to make the same `target` into the block one after the other.

    A process that dies lets the next one in. Where the file system has no locks, all come in at once, with
    a warning.

    Raises:
        SaveError: The folder that `target` is to lie in cannot be written.
    """
    target = Path(target)
    lock = target.parent / f".{target.name}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "w", encoding="utf-8")  # noqa: SIM115 (closed below, which ends the lock)
    except OSError as error:
        raise _readable(error, target) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("%s cannot be locked (%s): several processes may do the same work", lock, error)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def atomic_write(target: Path | str, content: bytes | str) -> None:
    """Replace the file `target` in one step; raise `SaveError` and leave it alone where that fails."""
    target = Path(target)
    temporary = temporary_name(target)
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise _readable(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, error: type[VlaError], missing: str = "there is no such file.") -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.
        error: What to raise.
        missing: What follows "is missing: " where the file does not exist.

    Raises:
        VlaError: The given class of error: the file is missing, cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a mark in front
    except FileNotFoundError as cause:
        raise error(f"{path} is missing: {missing}") from cause
    except (json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise error(f"{path} is not JSON: {cause}.") from cause
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause}.") from cause
    if not isinstance(values, dict):
        raise error(f"{path} must hold a JSON object, got a {type(values).__name__}.")
    return values


def sync(path: Path) -> None:
    """Make sure that the bytes are on disk before a name points to them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _readable(error: OSError, target: Path) -> SaveError:
    if isinstance(error, SaveError):
        return error
    return SaveError(f"Could not write {target}: {why_not_written(error, target)}. Nothing was changed.")


def why_not_written(error: OSError, target: Path) -> str:
    """Return the system's reason for not writing a file or folder, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    above = next((path for path in target.absolute().parents if path.exists()), None)
    if error.errno in (errno.ENOENT, errno.EPERM) and above is not None and keeps_no_files(above):
        return f"{above} is of the system, which keeps no files there"
    return error.strerror or str(error)


def keeps_no_files(folder: Path) -> bool:
    """Return whether nothing can be made in a folder, as it lies in a file system without room (`/proc`)."""
    if shutil.disk_usage(folder).total:
        return False
    try:  # one without a limit has no size either
        os.rmdir(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder))
    except OSError:
        return True
    return False
