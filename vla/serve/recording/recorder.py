"""What a server was asked and answered, as a LeRobot v3.0 dataset: to look at, and to ask the same again.

Recording never holds a robot up. A thread of its own writes; what it has no room for is dropped and counted.
Images are kept to the bit (`codec="lossless"`), so that `replay` gets the same chunk from the same seed.
"""

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy as np

from vla.atomic import atomic_write
from vla.data.writing.writer import LeRobotWriter
from vla.errors import DatasetError, VlaError
from vla.paths import kept
from vla.types import ACTION_KEY, IMAGE_PREFIX, STATE_KEY

logger = logging.getLogger(__name__)

CONTRACT_FILE = "meta/serving.json"
"""What the server said of itself, next to the dataset's own metadata."""
CHUNK_KEY = "chunk"
"""Column of the whole answer, `[a * d]`, step by step."""
NO_TASK = "(none)"
"""The dataset's task where a request has none."""
EXTRA = {
    "session": "string",
    "step": "int64",
    "answered": "bool",
    "seed": "int64",
    "level": "string",
    "latency_ms": "float32",
    "clipped": "int64",
    "time_us": "int64",
    "client_time_us": "int64",
    "request": "string",
}
"""Further columns: the session and the number of its request; whether a chunk was asked for (else the frame
was only noted); the seed, -1 for none or one beyond int64; level, milliseconds and clipped entries of the
answer; the clocks of server and client, microseconds, -1 for none; what else was asked for, as JSON."""

_FAILURES = (VlaError, OSError, ValueError, TypeError, RuntimeError, MemoryError)
"""What may go wrong with disk, encoder or values: the robot moves on without a recording."""

_TICK = 0.2  # seconds after which the thread looks whether the program has ended


@dataclass(frozen=True)
class Record:
    """One request and its answer.

    Attributes:
        session: Which episode it belongs to.
        observation: What `RobotPolicy.infer` took.
        actions: The answer `[a, d]` as sent; None where the frame was only noted.
        seed: Seed of the noise; None where `options` has the noise itself.
        options: Further arguments of `infer` that were given: `noise`, `num_steps`, `samples`, `pick`,
            `continuing`.
        level: At which the chunk was sampled.
        latency: Seconds from the request to the answer.
        clipped: Entries of the chunk that were clipped.
        time: Seconds of the server's clock, since the epoch.
        client_time: Seconds of the client's clock, where it sent them.
    """

    session: str
    observation: Mapping[str, Any]
    actions: np.ndarray | None
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    level: str = ""
    latency: float = 0.0
    clipped: int = 0
    time: float = field(default_factory=time.time)
    client_time: float | None = None

    @property
    def num_bytes(self) -> int:
        """Size in memory, nearly."""
        arrays = [value.nbytes for value in self.observation.values() if isinstance(value, np.ndarray)]
        return 2048 + sum(arrays) + (0 if self.actions is None else self.actions.nbytes)


class Recorder:
    """Writes records in a thread of its own; an episode for each session, a long one in several.

    Sizes of the cameras are those of the first frame: one of another layout is left out, and counted.

    Args:
        folder: Destination; must not exist yet.
        contract: `vla.serve.contract.contract`: names, frequency, and what is needed to replay.
        max_waiting_mb: MiB of images that may wait to be written; what comes then is dropped.
        max_held_mb: MiB of images of unfinished episodes; then the largest is saved, and begins anew.
        max_frames: Frames of an episode, likewise.

    Attributes:
        recorded: Frames in saved episodes.
        dropped: Frames that there was no room for, or that came after an error.
        unfit: Frames of another layout.
        error: Why nothing is recorded any more, or None.

    Raises:
        DatasetError: The folder exists already, or its parent cannot be made.
    """

    def __init__(
        self,
        folder: Path | str,
        contract: Mapping[str, Any],
        *,
        max_waiting_mb: float = 256,
        max_held_mb: float = 512,
        max_frames: int = 1000,
    ) -> None:
        self.folder = kept(folder)
        if self.folder.exists():
            raise DatasetError(f"{self.folder} exists already: give another folder, or remove it first.")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
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
        self._episodes = _Episodes(self.folder, self._contract)
        # Not a daemon: the program waits at its end until what was recorded is complete.
        self._thread = threading.Thread(target=self._write, name="vla-recording")
        self._thread.start()

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
            if self._closed or self.error is not None or not has_room:
                self.dropped += 1
                return False
            self._waiting += size
            self._queue.put((record, step))
        return True

    def end(self, session: str) -> None:
        """End a session: its episode is saved."""
        with self._lock:
            self._steps.pop(session, None)
            if not self._closed:
                self._queue.put(session)

    def close(self) -> None:
        """Save every episode and complete the dataset; return when that is done. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _write(self) -> None:
        while True:
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
            self._guarded(item)
            if item is None:
                return

    def _guarded(self, item: tuple[Record, int] | str | None) -> None:
        """Handle one item of the queue; an error ends the recording, and not the server."""
        if self.error is not None:
            self._drop(isinstance(item, tuple))
            return
        self._taken += isinstance(item, tuple)
        episodes = self._episodes
        try:
            if item is None:
                self._count(episodes.finish())
            elif isinstance(item, str):
                self._count(episodes.save(item))
            elif not episodes.fits(item[0]):
                self.unfit += 1
                if self.unfit == 1:
                    logger.warning("Not recorded: %s", episodes.why_not(item[0]))
            else:
                self._count(episodes.add(*item, *self._limits[1:]))
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
        with self._lock:
            self.dropped += frames

    def _count(self, saved: int) -> None:
        self.recorded += saved


class _Episodes:
    """The unfinished episodes of all sessions, and the writer of the finished ones; of one thread."""

    def __init__(self, folder: Path, contract: Mapping[str, Any]) -> None:
        self._folder = folder
        self._contract = contract
        self._robot = contract["robot"]
        self._writer: LeRobotWriter | None = None
        self._open: dict[str, list[dict[str, Any]]] = {}
        self._tasks: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._last: dict[str, tuple[np.ndarray, int]] = {}  # chunk, and frames since
        self._cameras: dict[str, tuple[int, int]] | None = None

    def fits(self, record: Record) -> bool:
        """Return whether a record has the dataset's layout, which the first one decides."""
        return not self.why_not(record)

    def why_not(self, record: Record) -> str:
        """Return how a record differs from the dataset's layout, or an empty text."""
        cameras = _cameras(record)
        if self._cameras is None:
            self._cameras = cameras
        if cameras != self._cameras:
            return f"the images are {cameras}, those of the first frame were {self._cameras}"
        shape = (self._robot["horizon"], len(self._robot["action"]["names"]))
        if record.actions is not None and record.actions.shape != shape:
            return f"the chunk is {list(record.actions.shape)}, the contract says {list(shape)}"
        return ""

    def add(self, record: Record, step: int, max_bytes: int, max_frames: int) -> int:
        """Add a record to its session's episode; return how many frames were saved meanwhile."""
        session, task = record.session, str(record.observation.get("task", "")).strip() or NO_TASK
        saved = self._saved(session) if self._tasks.get(session, task) != task else 0
        self._tasks[session] = task
        self._open.setdefault(session, []).append(self._row(record, step))
        self._sizes[session] = self._sizes.get(session, 0) + record.num_bytes
        if len(self._open[session]) >= max_frames:
            saved += self._saved(session)
        while sum(self._sizes.values()) > max_bytes:
            saved += self._saved(max(self._sizes, key=lambda one: self._sizes[one]))
        return saved

    def save(self, session: str) -> int:
        """End a session's episode; return how many frames were saved."""
        saved = self._saved(session)
        self._last.pop(session, None)
        return saved

    def finish(self) -> int:
        """Save everything and complete the dataset; return how many frames were saved."""
        saved = sum(self.save(session) for session in list(self._open))
        self.complete()
        return saved

    def complete(self) -> None:
        """Complete the dataset with the episodes that were saved."""
        if self._writer is None:
            logger.warning("Nothing was asked, so %s is not written.", self._folder)
            return
        try:
            if not self._folder.is_dir():  # after an error the writer has completed it already
                with self._writer:
                    self._writer.discard_episode()
        finally:
            if self._folder.is_dir():
                atomic_write(self._folder / CONTRACT_FILE, json.dumps(self._contract, indent=2) + "\n")

    def _saved(self, session: str) -> int:
        """Save what a session has, which may continue in another episode."""
        frames, task = self._open.pop(session, []), self._tasks.pop(session, NO_TASK)
        self._sizes.pop(session, None)
        if not frames:
            return 0
        if self._writer is None:
            self._writer = self._opened()
        for frame in frames:
            self._writer.add_frame(frame)
        self._writer.save_episode(task)
        return len(frames)

    def _opened(self) -> LeRobotWriter:
        names = self._robot["action"]["names"]
        steps = range(self._robot["horizon"])
        return LeRobotWriter(
            self._folder,
            fps=nominal_rate(self._robot["frequency"]),
            cameras=self._cameras or {},
            state_names=self._robot["state"]["names"],
            action_names={
                ACTION_KEY: names,
                CHUNK_KEY: [f"{name}@{step}" for step in steps for name in names],
            },
            robot_type=self._robot.get("name") or "unknown",
            extra_features=EXTRA,
            codec="lossless",
        )

    def _row(self, record: Record, step: int) -> dict[str, Any]:
        shape = (self._robot["horizon"], len(self._robot["action"]["names"]))
        chunk, since = self._last.get(record.session, (np.zeros(shape, np.float32), 0))
        if record.actions is not None:
            chunk, since = record.actions, 0
        self._last[record.session] = chunk, since + 1
        images = {key: record.observation[key] for key in _cameras(record)}
        return {
            **images,
            STATE_KEY: record.observation[STATE_KEY],
            # Of a frame that was only noted: what the last chunk has for it.
            ACTION_KEY: chunk[min(since, len(chunk) - 1)],
            CHUNK_KEY: chunk.reshape(-1),
            "session": record.session,
            "step": step,
            "answered": record.actions is not None,
            "seed": record.seed if _is_column(record.seed) else -1,
            "level": record.level,
            "latency_ms": record.latency * 1000,
            "clipped": record.clipped,
            "time_us": _microseconds(record.time),
            "client_time_us": _microseconds(record.client_time),
            "request": options_as_json(record),
        }


def nominal_rate(frequency: float | None) -> int:
    """Return the dataset's rate: the robot's, whole. Requests come more seldom; `time_us` says when."""
    return 1 if frequency is None else int(min(max(round(frequency), 1), 1000))


def options_as_json(record: Record) -> str:
    """Return what a request asked for besides its observation, seed and clock, as JSON."""
    made: dict[str, Any] = {}
    for name, value in record.options.items():
        if name == "continuing":
            made[name] = {
                "actions": np.asarray(value.actions).tolist(),
                "delay": int(value.delay),
                "method": value.method,
                "schedule": value.schedule,
                "max_weight": float(value.max_weight),
            }
        else:
            made[name] = np.asarray(value).tolist() if isinstance(value, np.ndarray) else value
    if record.seed is not None and not _is_column(record.seed):
        made["seed"] = record.seed
    if "task" not in record.observation:
        made["no_task"] = True
    return json.dumps(made)


def _is_column(seed: int | None) -> bool:
    """Return whether a seed can stand in the column `seed`, where -1 is none."""
    return seed is not None and 0 <= seed < 2**63


def _cameras(record: Record) -> dict[str, tuple[int, int]]:
    keys = sorted(key for key in record.observation if key.startswith(IMAGE_PREFIX))
    return {key: tuple(record.observation[key].shape[:2]) for key in keys}


def _microseconds(seconds: float | None) -> int:
    if seconds is None or not np.isfinite(seconds) or not 0 <= seconds < 2**42:
        return -1
    return round(seconds * 1e6)
