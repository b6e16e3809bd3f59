"""What is recorded of a request and its answer, and how it becomes rows and episodes of a dataset."""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from vla.atomic import atomic_write
from vla.data.writing.writer import LeRobotWriter
from vla.errors import DatasetError
from vla.serve.recording.claim import Claim, claim
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


MAX_LAYOUTS = 8
"""Datasets of one recording, for images of so many different sizes: a client that has more is at fault."""

Layout = tuple[tuple[str, int, int], ...]
"""Key, height and width of each camera."""


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


@dataclass
class _Dataset:
    """One dataset that is being written, how many frames it has, and whether some are not flushed yet."""

    writer: LeRobotWriter
    frames: int = 0
    is_unsafe: bool = False


class Episodes:
    """The unfinished episodes of all sessions, and the datasets of the finished ones; of one thread.

    Images of one dataset have one size. A frame with others ends its session's episode and begins one in
    another dataset: the first that is saved goes to the folder, further ones next to it (`monday-2`).

    Args:
        folder: Destination of the first.
        contract: The server's.
        own: The claim on it, which is released with those of the others.
    """

    def __init__(self, folder: Path, contract: Mapping[str, Any], own: Claim) -> None:
        self._folder = folder
        self._contract = contract
        self._robot = contract["robot"]
        self._claims = [own]
        self._datasets: dict[Layout, _Dataset] = {}
        self._layouts: set[Layout] = set()  # of the unfinished episodes as well
        self._open: dict[str, list[dict[str, Any]]] = {}
        self._kinds: dict[str, tuple[str, Layout]] = {}  # task and layout of the unfinished episode
        self._sizes: dict[str, int] = {}
        self._last: dict[str, tuple[np.ndarray, int]] = {}  # chunk, and frames since

    @property
    def is_unsafe(self) -> bool:
        """Whether episodes were saved since the last `flush`."""
        return any(one.is_unsafe for one in self._datasets.values())

    @property
    def complete_ones(self) -> dict[Path, int]:
        """The datasets that are complete, and how many frames each has."""
        return {one.writer.folder: one.frames for one in self._datasets.values() if one.writer.is_complete}

    def why_not(self, record: Record) -> str:
        """Return why a record cannot be written, or an empty text."""
        layout = _layout(record)
        if layout not in self._layouts and len(self._layouts) >= MAX_LAYOUTS:
            sizes = {key: (height, width) for key, height, width in layout}
            return f"the images are {sizes}, and {MAX_LAYOUTS} other layouts have a dataset each already"
        shape = (self._robot["horizon"], len(self._robot["action"]["names"]))
        if record.actions is not None and record.actions.shape != shape:
            return f"the chunk is {list(record.actions.shape)}, the contract says {list(shape)}"
        return ""

    def add(self, record: Record, step: int, max_bytes: int, max_frames: int) -> int:
        """Add a record to its session's episode; return how many frames were saved meanwhile."""
        session = record.session
        kind = str(record.observation.get("task", "")).strip() or NO_TASK, _layout(record)
        saved = self._saved(session) if self._kinds.get(session, kind) != kind else 0
        self._kinds[session] = kind
        self._layouts.add(kind[1])
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
        """Save everything and complete the datasets; return how many frames were saved."""
        saved = sum(self.save(session) for session in list(self._open))
        self.complete()
        return saved

    def flush(self) -> None:
        """Make the episodes that were saved readable, whatever becomes of the program."""
        for one in self._datasets.values():
            if one.is_unsafe:
                self._add_contract(one.writer.flush())
                one.is_unsafe = False

    def complete(self) -> None:
        """Complete the datasets with the episodes that were saved, each whatever becomes of the others."""
        if not self._layouts:
            logger.warning("Nothing was asked, so %s is not written.", self._folder)
        with ExitStack() as stack:
            for one in self._datasets.values():
                stack.callback(self._complete, one.writer)

    def release(self) -> None:
        """Let others have the names of the folders."""
        for one in self._claims:
            one.release()

    def _complete(self, writer: LeRobotWriter) -> None:
        try:
            if not writer.is_closed:  # after an error it has closed itself
                with writer:
                    writer.discard_episode()
        finally:
            if writer.is_complete:  # another's folder may have that name otherwise
                self._add_contract(writer.folder)

    def _add_contract(self, folder: Path) -> None:
        atomic_write(folder / CONTRACT_FILE, json.dumps(self._contract, indent=2) + "\n")

    def _saved(self, session: str) -> int:
        """Save what a session has, which may continue in another episode."""
        frames, kind = self._open.pop(session, []), self._kinds.pop(session, None)
        self._sizes.pop(session, None)
        if not frames or kind is None:
            return 0
        task, layout = kind
        if layout not in self._datasets:
            self._datasets[layout] = _Dataset(self._opened(layout))
        dataset = self._datasets[layout]
        for frame in frames:
            dataset.writer.add_frame(frame)
        dataset.writer.save_episode(task)
        dataset.frames += len(frames)
        dataset.is_unsafe = True
        return len(frames)

    def _opened(self, layout: Layout) -> LeRobotWriter:
        names = self._robot["action"]["names"]
        steps = range(self._robot["horizon"])
        cameras = {key: (height, width) for key, height, width in layout}
        return LeRobotWriter(
            self._next_folder(cameras) if self._datasets or self._folder.exists() else self._folder,
            fps=nominal_rate(self._robot["frequency"]),
            cameras=cameras,
            state_names=self._robot["state"]["names"],
            action_names={
                ACTION_KEY: names,
                CHUNK_KEY: [f"{name}@{step}" for step in steps for name in names],
            },
            robot_type=self._robot.get("name") or "unknown",
            extra_features=EXTRA,
            codec="lossless",
        )

    def _next_folder(self, cameras: Mapping[str, tuple[int, int]]) -> Path:
        """Return a folder next to the first, claimed: for other sizes, or where somebody made the first."""
        for number in count(2):
            folder = numbered(self._folder, number)
            with suppress(DatasetError):  # there is one already, or another recorder has it
                self._claims.append(claim(folder))
                break
        logger.warning("Images of %s are recorded in %s, not in %s.", cameras, folder, self._folder)
        return folder

    def _row(self, record: Record, step: int) -> dict[str, Any]:
        shape = (self._robot["horizon"], len(self._robot["action"]["names"]))
        chunk, since = self._last.get(record.session, (np.zeros(shape, np.float32), 0))
        if record.actions is not None:
            chunk, since = record.actions, 0
        self._last[record.session] = chunk, since + 1
        images = {key: record.observation[key] for key, *_ in _layout(record)}
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


def numbered(folder: Path, number: int) -> Path:
    """Return where the dataset of a recording's second layout, third, ... lies."""
    return folder.with_name(f"{folder.name}-{number}")


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


def _layout(record: Record) -> Layout:
    keys = sorted(key for key in record.observation if key.startswith(IMAGE_PREFIX))
    return tuple((key, *record.observation[key].shape[:2]) for key in keys)


def _microseconds(seconds: float | None) -> int:
    if seconds is None or not np.isfinite(seconds) or not 0 <= seconds < 2**42:
        return -1
    return round(seconds * 1e6)
