"""What a server was asked and answered, as a LeRobot v3.0 dataset: to look at, and to ask the same again.

Recording never holds a robot up. A thread of its own writes; what it has no room for is dropped and counted.
Images are kept to the bit (`codec="lossless"`), so that `replay` gets the same chunk from the same seed.
"""

import atexit
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from vla.data.writing.partial import about_leftovers
from vla.errors import DatasetError, VlaError
from vla.paths import kept
from vla.serve.recording.claim import claim
from vla.serve.recording.episodes import MAX_LAYOUTS, Episodes, Record, numbered
from vla.signals import held_off

logger = logging.getLogger(__name__)

_FAILURES = (VlaError, OSError, ValueError, TypeError, RuntimeError, MemoryError)
"""What may go wrong with disk, encoder or values: the robot moves on without a recording."""

_TICK = 0.2
"""Seconds after which the thread looks whether the program has ended, or what was saved is to be flushed."""
FLUSH_EVERY = 10.0
"""Seconds after which what was saved meanwhile is made readable on disk."""
_FLUSH_IDLE = 1.0
"""The same where nothing waits to be written."""
_FLUSH_SHARE = 5
"""It is done more seldom where it takes long: at most this share of the time, one part in so many."""


class Recorder:
    """Writes records in a thread of its own; an episode for each session, a long one in several.

    Finished episodes survive the program, SIGKILL and power cuts included: they are made readable
    (`LeRobotWriter.flush`) within a second, or `FLUSH_EVERY` while there is more to write. What an earlier
    program left so is named at the start.

    A dataset holds images of one size. Frames with others are written to a dataset next to it, `FOLDER-2`,
    and so on up to `MAX_LAYOUTS`.

    Args:
        folder: Destination; must not exist yet. It is claimed until the end: another recorder is refused.
        contract: `vla.serve.contract.contract`: names, frequency, and what is needed to replay.
        max_waiting_mb: MiB of images that may wait to be written; what comes then is dropped.
        max_held_mb: MiB of images of unfinished episodes; then the largest is saved, and begins anew.
        max_frames: Frames of an episode, likewise.
        counted: Called with "recorded", "dropped" or "unfit" and the number of frames, by any thread.

    Attributes:
        recorded: Frames in saved episodes.
        dropped: Frames that there was no room for, or that came after an error.
        unfit: Frames of more layouts than are written, or with another chunk than the contract's.
        error: Why nothing is recorded any more, or None.

    Raises:
        DatasetError: The folder exists already, another recorder has claimed it, or its parent cannot be
            made.
    """

    def __init__(
        self,
        folder: Path | str,
        contract: Mapping[str, Any],
        *,
        max_waiting_mb: float = 256,
        max_held_mb: float = 512,
        max_frames: int = 1000,
        counted: Callable[[str, int], None] | None = None,
    ) -> None:
        self.folder = kept(folder)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            own = claim(self.folder)
        except OSError as error:
            raise DatasetError(f"{self.folder} cannot be written: {error}.") from error
        self._contract = dict(contract)
        self._limits = (int(max_waiting_mb * 2**20), int(max_held_mb * 2**20), max_frames)
        self.recorded = self.dropped = self.unfit = 0
        self.error: str | None = None
        self._queue: SimpleQueue[tuple[Record, int] | str | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0  # bytes
        self._taken = 0  # records that came to the thread
        self._steps: dict[str, int] = {}
        self._closed = False
        self._flushed = (float("-inf"), 0.0)  # when the last flush ended, and how long it took
        self._is_done = threading.Event()
        self._counted = counted or (lambda what, frames: None)
        for folder in (self.folder, *(numbered(self.folder, one) for one in range(2, MAX_LAYOUTS + 1))):
            if left := about_leftovers(folder):
                logger.warning("%s", left)
        self._episodes = Episodes(self.folder, self._contract, own)
        # Not a daemon: the program waits at its end until what was recorded is complete.
        self._thread = threading.Thread(target=self._write, name="vla-recording")
        self._thread.start()
        # Before the writer's own: it would take the writer from the thread.
        atexit.register(self._wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def put(self, record: Record) -> bool:
        """Hand a record over, without waiting; return whether there was room for it."""
        size = record.num_bytes
        with self._lock:
            step = self._steps[record.session] = self._steps.get(record.session, -1) + 1
            has_room = self._waiting + size <= self._limits[0] or not self._waiting
            is_taken = not self._closed and self.error is None and has_room
            if is_taken:
                self._waiting += size
                self._queue.put((record, step))
        if not is_taken:
            self._drop(1)
        return is_taken

    def skip(self, session: str) -> None:
        """Count a request that is not recorded, as those before and after it are."""
        with self._lock:
            self._steps[session] = self._steps.get(session, -1) + 1

    def end(self, session: str) -> None:
        """End a session: its episode is saved."""
        with self._lock:
            self._steps.pop(session, None)
            if not self._closed:
                self._queue.put(session)

    def close(self) -> None:
        """Save every episode and complete the dataset; return when that is done. Idempotent.

        Ctrl-C, SIGTERM and their like have their effect afterwards.
        """
        if not self._is_done.is_set():
            with held_off(self._say_unfinished):
                self._wait()
        atexit.unregister(self._wait)

    @property
    def missing(self) -> int:
        """Frames that were handed over and are in no dataset, once it is closed."""
        return self.recorded + self.dropped + self.unfit - sum(self._episodes.complete_ones.values())

    def summary(self) -> str:
        """Return what became of the recording, once it is closed: `"20 frames in recordings/monday"`.

        Raises:
            DatasetError: There were frames, and none of them could be recorded.
        """
        datasets, missing = self._episodes.complete_ones, self.missing
        if not datasets and not missing:
            return f"nothing, since nothing was asked; {self.folder} is not written"
        counts = {
            "there was no room for": self.dropped,
            "were of too many layouts or another chunk": self.unfit,
        }
        why = self.error or ", ".join(f"{frames} {reason}" for reason, frames in counts.items() if frames)
        why = why.rstrip(".")
        if not datasets:
            raise DatasetError(
                f"Nothing could be recorded: {missing} frames were answered, and {self.folder} does not have "
                f"them: {why}."
            )
        said = ", ".join(f"{frames} frames in {folder}" for folder, frames in datasets.items())
        return said if not missing else f"{said}; {missing} frames are not recorded: {why}"

    def _wait(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        # Not by join: interrupted by a signal it would take the thread for one that has ended.
        self._is_done.wait()

    def _say_unfinished(self) -> None:
        logger.warning("The recording is being completed; the signal has its effect afterwards.")

    def _write(self) -> None:
        try:
            self._write_all()
        finally:
            self._episodes.release()
            self._is_done.set()

    def _write_all(self) -> None:
        while True:
            if self.error is None:
                self._guarded(self._flush)
            try:
                item = self._queue.get(timeout=_TICK)
            except Empty:
                if threading.main_thread().is_alive():
                    continue
                item = None  # the program ended without close()
            with self._lock:
                if item is None:
                    self._closed = True
                if isinstance(item, tuple):
                    self._waiting -= item[0].num_bytes
            if self.error is None:
                self._taken += isinstance(item, tuple)
                self._guarded(self._handle, item)
            else:
                self._drop(isinstance(item, tuple))
            if item is None:
                return

    def _handle(self, item: tuple[Record, int] | str | None) -> None:
        """Handle one item of the queue."""
        episodes = self._episodes
        if item is None:
            self._count(episodes.finish())
        elif isinstance(item, str):
            self._count(episodes.save(item))
        elif why := episodes.why_not(item[0]):
            self.unfit += 1
            self._counted("unfit", 1)
            if self.unfit == 1:
                logger.warning("Not recorded, as are all others like it: %s.", why)
        else:
            self._count(episodes.add(*item, *self._limits[1:]))

    def _flush(self) -> None:
        """Make readable what was saved since the last time, where that is due."""
        began, (last, took) = time.monotonic(), self._flushed
        pause = max(_FLUSH_IDLE if self._queue.empty() else FLUSH_EVERY, (_FLUSH_SHARE - 1) * took)
        if self._episodes.is_unsafe and began >= last + pause:
            self._episodes.flush()
            now = time.monotonic()
            self._flushed = now, now - began

    def _guarded(self, work: Callable[..., None], *given: Any) -> None:
        """Do something; an error ends the recording, and not the server."""
        try:
            work(*given)
        except _FAILURES as error:
            self.error = str(error) or type(error).__name__
            self._drop(self._taken - self.recorded - self.unfit)
            logger.error("Nothing is recorded any more: %s", error)
            self._rescue()

    def _rescue(self) -> None:
        """Complete the dataset with the episodes that were saved, where that is possible."""
        try:
            self._episodes.complete()
        except _FAILURES as error:
            logger.error("The recording ended with: %s", error)

    def _drop(self, frames: int) -> None:
        if frames:
            with self._lock:
                self.dropped += frames
            self._counted("dropped", frames)

    def _count(self, saved: int) -> None:
        if saved:
            self.recorded += saved
            self._counted("recorded", saved)
