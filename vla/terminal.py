"""Who reads what is printed: a person at a terminal, for whom a bar moves, or a log, which gets lines."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

    from vla.types import ProgressCallback

logger = logging.getLogger(__name__)

LINE_EVERY = 10.0
"""Seconds between two lines about the same work, where no bar moves."""

NARROWEST = 40
"""Columns that tables get at least."""

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def is_watched(stream: TextIO | None = None) -> bool:
    """Whether a person at a real terminal watches a stream, stderr where none is given.

    Not so in a file or a pipe, on a terminal that cannot move its cursor (`TERM=dumb`), and in continuous
    integration (`CI`), whatever colours are forced.
    """
    stream = sys.stderr if stream is None else stream
    try:
        terminal = stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return terminal and not dumb and os.environ.get("CI", "").lower() in ("", "0", "false")


def plain_console(stderr: bool = False) -> "Console":
    """Return a rich console for stdout or stderr: without control characters unless somebody watches."""
    from rich.console import Console

    class Unguarded(Console):
        def on_broken_pipe(self) -> None:
            raise  # what it is called for: rich itself would exit with 1

    watched = is_watched(sys.stderr if stderr else sys.stdout)
    made = Unguarded(
        stderr=stderr,
        highlight=False,
        markup=False,
        soft_wrap=not stderr,
        force_terminal=watched,
        color_system="auto" if watched else None,
    )
    if made.width < NARROWEST:  # COLUMNS=1: tables would be empty boxes
        made.width = NARROWEST
    return made


@contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Show neither bars nor lines of progress within the block."""
    token = _quiet.set(quiet)
    try:
        yield
    finally:
        _quiet.reset(token)


def is_quiet() -> bool:
    """Whether progress is to be shown neither by bars nor by lines; see `quietly`."""
    return _quiet.get()


@contextmanager
def progress(description: str, *columns: "ProgressColumn", show: bool = True) -> "Iterator[ProgressCallback]":
    """Show the progress of some work on stderr; call what is yielded with (done, total).

    Args:
        description: What is done.
        columns: What the bar says of the amounts; "3/7" where nothing is given.
        show: False shows nothing.
    """
    if not show or is_quiet():
        yield lambda done, total: None
    elif is_watched():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *(columns or (MofNCompleteColumn(),)),
            TimeRemainingColumn(),
            console=plain_console(stderr=True),
            transient=True,
        ) as bar:
            task = bar.add_task(description, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield ProgressLines(description)


class ProgressLines:
    """Logs how far some work is, every few seconds: for who reads a log."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._start = self._said = time.monotonic()

    def __call__(self, done: int, total: int | None, note: str = "") -> None:
        """Log a line if the last one is some seconds old."""
        now = time.monotonic()
        if not self._is_due(now):
            return
        share = f"{done} of {total}" if total else str(done)
        left = f", {time_left(now - self._start, done, total)} left" if total and done else ""
        logger.info("%s: %s%s%s", self._description, share, note and f", {note}", left)

    def stage(self, name: str) -> None:
        """Log what begins now, without an amount, if the last line is some seconds old."""
        if self._is_due(time.monotonic()):
            logger.info("%s", name)

    def _is_due(self, now: float) -> bool:
        due = now - self._said >= LINE_EVERY
        self._said = now if due else self._said
        return due


def time_left(seconds: float, done: int, total: int) -> str:
    """Return how long the rest takes at the pace so far, "0:12:05".

    Args:
        seconds: Time that what is done took.
        done: Amount that is done, at least 1.
        total: Amount of the whole.
    """
    return str(timedelta(seconds=round(seconds / done * max(total - done, 0))))
