"""Recordings that nobody completed: done when their writer goes, or the program ends, and said."""

import atexit
import logging
import os
import weakref
from typing import Any

from vla.errors import VlaError

_log = logging.getLogger(__name__)
_open: "weakref.WeakSet[Any]" = weakref.WeakSet()


class Unfinished:
    """A writer that is completed at the latest when nothing refers to it any more."""

    def __del__(self) -> None:
        finish(self)


def remember(writer: Any) -> None:
    """Let a writer be completed at the end of the program, where it is still open then."""
    writer._process = os.getpid()
    _open.add(writer)


def finish(writer: Any) -> None:
    """Complete the dataset of a writer that is still open, with the episodes that were saved; and say so."""
    closed = getattr(writer, "_closed", "never opened")
    if closed is not None or getattr(writer, "_process", None) != os.getpid():  # a forked copy writes nothing
        return
    frames, episodes = len(writer._frames), len(writer._episode_rows)
    unsaved = f" {frames} frames that were added after the last save_episode are not in it." if frames else ""
    try:
        if not episodes:
            writer.abort()
            what = f"no episode was saved, so there is no dataset in {writer.folder}."
        else:
            writer.discard_episode()
            writer.finalize()
            what = f"{writer.folder} has been completed now, with the {episodes} episodes that were saved."
    except (VlaError, OSError) as error:
        what = f"{writer.folder} could not be completed now: {error}"
    _log.warning(
        "A LeRobotWriter was left without finalize(): %s%s Call finalize() at the end of a recording, or use "
        "the writer in a with block.",
        what,
        unsaved,
    )


@atexit.register
def _finish_all() -> None:
    for writer in list(_open):
        finish(writer)
