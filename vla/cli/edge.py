"""The edge of the command line: what the system and other libraries raise becomes one sentence, or a fault.

What a user can cause in a way that the library foresees is a `VlaError` already. Left for here is what any
system call may say, wherever it is made. Whatever is not listed is a fault of ours and keeps its traceback.
"""

import errno
import os
import re
from pathlib import Path
from traceback import walk_tb
from types import TracebackType

from vla.errors import VlaError, gone, is_out_of_memory

SYSTEM_ERRORS = (VlaError, OSError, UnicodeError, MemoryError, RuntimeError, EOFError)
"""What `in_one_line` may have words for."""

_STEP = re.compile(r"\S*checkpoints/step-\d{6,}")
"""A run's checkpoint in a message; it may be removed by its run while a command reads it."""
_ADVICE = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "the quota of the disk is used up: make room",
    errno.EROFS: "it lies on a read-only disk",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOENT: "there is no such file or folder",
    errno.EISDIR: "it is a folder, where a file is wanted",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "it is a link that leads back to itself",
    errno.EMFILE: "too many files are open at once: raise `ulimit -n`",
    errno.ENFILE: "too many files are open at once on this machine",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "the network disk that it lay on was taken away",
}
NO_MEMORY = (
    "There is not enough memory. A smaller batch, dtype bfloat16, activation checkpointing, an adapter or a "
    "smaller preset needs less: `vla info CHECKPOINT --memory` predicts how much each way of using it takes."
)


def in_one_line(error: BaseException) -> str | None:
    """Return what an exception says to a user, in one line; None where it is a fault of ours."""
    if isinstance(error, VlaError):
        said = str(error)
    elif is_out_of_memory(error):
        said = NO_MEMORY
    elif isinstance(error, UnicodeDecodeError):
        file = _file_being_read(error.__traceback__)
        said = f"{file or 'A file'} is not text in UTF-8: {error.reason} at byte {error.start}."
    elif isinstance(error, UnicodeError):
        said = f"A text cannot be written or sent: {error}."
    elif isinstance(error, OSError):
        said = _of_the_system(error)
    elif isinstance(error, EOFError):
        said = "The input, or a file, ended where more was expected" + (f": {error}." if str(error) else ".")
    else:
        return None
    step = _STEP.search(said)
    removed = gone(Path(step[0])) if step and isinstance(error, OSError) else ""
    return " ".join((removed or said).split())


def _of_the_system(error: OSError) -> str:
    if error.errno is None:  # of a library, which wrote a sentence of its own
        return str(error) or type(error).__name__
    reason = _ADVICE.get(error.errno) or (error.strerror or os.strerror(error.errno)).lower()
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' -> '.join(names)}: {reason}." if names else f"The system says: {reason}."


def _file_being_read(trace: TracebackType | None) -> str | None:
    """Return the path that `Path.read_text` was called on, or the name of the file that was being read."""
    for frame, _ in reversed(list(walk_tb(trace))):
        held = frame.f_locals.get("self")
        if isinstance(held, os.PathLike):
            return os.fspath(held)
        for value in frame.f_locals.values():
            if hasattr(value, "read") and isinstance(getattr(value, "name", None), str):
                return value.name
    return None
