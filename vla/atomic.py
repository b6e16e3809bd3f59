"""Files and folders that are either whole or not there."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vla.errors import VlaError


class SaveError(VlaError, OSError):
    """Something could not be written; whatever was there before is untouched."""


@contextmanager
def atomic_folder(target: Path | str) -> Iterator[Path]:
    """Yield a new folder beside `target` that takes its place when the block ends well.

    Args:
        target: Must not exist, or be an empty folder.

    Raises:
        SaveError: `target` holds something already, or the disk is full or read-only. Nothing is left
            behind.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SaveError(f"{target} exists already and is not empty; choose another folder or remove it.")
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _sync(path)
        os.replace(temporary, target)
        _sync(target.parent)
    except OSError as error:
        raise _readable(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def atomic_write(target: Path | str, content: bytes | str) -> None:
    """Replace the file `target` in one step; raise `SaveError` and leave it alone where that fails."""
    target = Path(target)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        _sync(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise _readable(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make sure that the bytes are on disk before a name points to them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _readable(error: OSError, target: Path) -> SaveError:
    if isinstance(error, SaveError):
        return error
    reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
    return SaveError(f"Could not write {target}: {reason}. Nothing was changed.")
