"""Recordings that were not completed: done after an error, or when the writer goes or the program ends."""

import atexit
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyarrow.compute as pc
import pyarrow.parquet as pq

from vla.data.writing.partial import hold
from vla.errors import DatasetError, VlaError
from vla.paths import is_hidden

_log = logging.getLogger(__name__)
_Writer = TypeVar("_Writer", bound=Any)
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
_open: "weakref.WeakSet[Any]" = weakref.WeakSet()


class Unfinished:
    """A writer that is completed at the latest when nothing refers to it any more."""

    _closed: str | None

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can be recorded: it is complete, was given up, or failed."""
        return self._closed is not None

    @property
    def is_complete(self) -> bool:
        """Whether its dataset, and no other one, is the folder that it was to write."""
        return self._closed == "finalised"

    def __del__(self) -> None:
        finish(self)


def remember(writer: Any) -> None:
    """Let a writer be completed at the end of the program, where it is still open then."""
    writer._process = os.getpid()
    writer._mutex = threading.RLock()
    hold(writer._temporary, writer)
    _open.add(writer)


def locked(
    method: Callable[Concatenate[_Writer, _Given], _Result],
) -> Callable[Concatenate[_Writer, _Given], _Result]:
    """Make a method of a writer one that no other thread comes into, the end of the program included."""

    @wraps(method)
    def alone(self: _Writer, *given: _Given.args, **named: _Given.kwargs) -> _Result:
        with self._mutex:
            return method(self, *given, **named)

    return alone


def finish(writer: Any) -> None:
    """Complete the dataset of a writer that is still open, with the episodes that were saved; and say so.

    Where a thread is in one of its methods, such as `finalize`, that is waited for.
    """
    if getattr(writer, "_process", None) != os.getpid():  # never opened; and a forked copy writes nothing
        return
    with writer._mutex:
        _finish(writer)


def _finish(writer: Any) -> None:
    if writer._closed is not None:
        return
    _log.warning(
        "A LeRobotWriter was left without finalize(): %s Call finalize() at the end of a recording, or use "
        "the writer in a with block.",
        _completed(writer),
    )


def abandon(writer: Any) -> None:
    """Leave nothing of a writer's dataset, unless it is closed already; nothing is said."""
    with writer._mutex:
        if writer._closed is None:
            writer._close("abandoned")


def rescue(writer: Any, how: str = "abandoned") -> None:
    """Complete the dataset of a writer that is still open while an exception passes, and say so.

    Args:
        writer: The writer; without a saved episode nothing is left of it.
        how: What becomes of it in that case: `"abandoned"` or `"failed"`.
    """
    if writer._closed is not None:
        return
    if not writer._episode_rows and not writer._frames:  # nothing to tell
        writer._close(how)
        return
    error = sys.exception()
    cause = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else type(error).__name__
    _log.warning("A recording was ended by %s: %s", cause, _completed(writer, how))


def left_of(writer: Any) -> str:
    """Return where the files of a recording are that could not be completed, as a sentence."""
    if writer._temporary.exists():
        return f"What was recorded is left in {writer._temporary}."
    missing = f"{writer._temporary}, where it was, is not there any more"
    if writer.folder.exists():
        return f"{missing}; {writer.folder} is there: see whether that is what was recorded."
    return f"What was recorded is gone: {missing}."


def check_open(writer: Any) -> None:
    """Raise `DatasetError` where a writer is closed."""
    if writer._closed is None:
        return
    how = {
        "finalised": "is complete",
        "abandoned": "was given up and removed",
        "failed": f"failed. {left_of(writer)}" if writer._episode_rows else "failed and was removed",
    }
    raise DatasetError(
        f"The recording of {writer.folder} {how[writer._closed].rstrip('.')}: record more episodes "
        "with a new LeRobotWriter, into a folder of their own."
    )


def drop_unsaved(data: Path, episodes: int) -> None:
    """Remove the rows of an episode that was not saved from the last file of a closed recording.

    Args:
        data: The folder of its tables.
        episodes: How many were saved.
    """
    last = max(path for path in data.glob("*/*.parquet") if not is_hidden(path))
    table = pq.ParquetFile(last).read()
    numbers = table["episode_index"]
    if pc.call_function("max", [numbers]).as_py() in range(episodes):
        return
    last.unlink()
    saved = [number for number in numbers.unique().to_pylist() if number < episodes]
    if saved:
        with pq.ParquetWriter(last, table.schema) as file:
            for number in saved:
                file.write_table(table.filter(pc.call_function("equal", [numbers, number])))


def _completed(writer: Any, how: str = "abandoned") -> str:
    """Complete an open writer's dataset with the episodes that were saved; return what became of it."""
    frames, episodes = len(writer._frames), len(writer._episode_rows)
    unsaved = f" {frames} frames that were added after the last save_episode are not in it." if frames else ""
    try:
        if not episodes:
            writer._close(how)
            unsaved = f" {frames} frames that were added are lost." if frames else ""
            return f"no episode was saved, so there is no dataset in {writer.folder}.{unsaved}"
        writer.discard_episode()
        writer.finalize()
    except (VlaError, OSError) as error:
        return f"{writer.folder} could not be completed now: {error}{unsaved}"
    return f"{writer.folder} has been completed now, with the {episodes} episodes that were saved.{unsaved}"


@atexit.register
def _finish_all() -> None:
    for writer in list(_open):
        finish(writer)
