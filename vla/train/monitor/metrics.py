"""What a run reports: `metrics.jsonl`, TensorBoard, and the progress bar."""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vla.atomic import atomic_write
from vla.errors import TrainingError
from vla.terminal import is_quiet, is_watched, plain_console, time_left
from vla.train.monitor.trackers import Tracker

logger = logging.getLogger(__name__)

_UNSAID = ("data_wait_share",)
"""Recorded, but no part of a line about a step."""


class DataWait:
    """How much of the time was spent waiting for batches: a context manager around each wait."""

    def __init__(self) -> None:
        self._waited, self._since, self._entered = 0.0, time.perf_counter(), 0.0

    def __enter__(self) -> Self:
        self._entered = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self._waited += time.perf_counter() - self._entered

    def take(self) -> dict[str, float]:
        """Return `data_wait_share`, in [0, 1], of the wall-clock since the last call, and start anew."""
        now = time.perf_counter()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return {"data_wait_share": share}


def read_metrics(path: Path | str) -> list[dict[str, float]]:
    """Return the records of a `metrics.jsonl`, without what a killed process left unfinished.

    That is its last line, or, where the file was written on later, the beginning of a line, which ends with a
    whole record then. What else holds no record is left out with a warning.
    """
    path = Path(path)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    found = [_record(line) for line in lines]
    whole = [one for one in found if one is not None]
    cut = bool(lines) and not lines[-1].endswith(b"\n") and found[-1] is None
    if damaged := len(found) - len(whole) - cut:
        logger.warning("%s: %d damaged lines are left out, %d records are kept", path, damaged, len(whole))
    return whole


def _record(line: bytes) -> dict[str, float] | None:
    """Return the record that a line holds or, behind the beginning of another, ends with."""
    if not line.endswith(b"\n"):
        return None
    start = line.rfind(b'{"step":')
    try:
        record = json.loads(line[max(start, 0) :])
    except ValueError:
        return None
    is_record = isinstance(record, dict) and type(record.get("step")) is int
    return record if is_record else None


class MetricsLog:
    """Appends records to `metrics.jsonl` and, if wanted, to TensorBoard and other trackers.

    Records after `start_step`, left by a process that was killed later than its last checkpoint, are dropped:
    the resumed run writes them again.
    """

    def __init__(
        self, path: Path, tensorboard: Path | None, start_step: int, trackers: Sequence[Tracker] = ()
    ) -> None:
        if tensorboard and tensorboard.exists() and not tensorboard.is_dir():
            raise TrainingError(
                f"{tensorboard} is a file, where TensorBoard's files go: move it away, or set "
                "train.tensorboard=false."
            )
        self._trackers = trackers
        kept = [record for record in read_metrics(path) if record["step"] <= start_step]
        atomic_write(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._path = path
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._tensorboard = None
        if tensorboard:
            # Imported here: it takes a second, and not everybody wants it.
            from torch.utils.tensorboard.writer import SummaryWriter

            self._tensorboard = SummaryWriter(str(tensorboard), purge_step=start_step + 1, flush_secs=30)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step.

        Raises:
            TrainingError: The disk is full or cannot be written.
        """
        with self._write_errors():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            if self._tensorboard:
                for name, value in values.items():
                    self._tensorboard.add_scalar(name, value, step)
            for tracker in self._trackers:
                tracker.write(step, values)

    def close(self) -> None:
        """Flush and close all of them.

        Raises:
            TrainingError: The disk is full or cannot be written.
        """
        with self._write_errors():
            self._file.close()
            if self._tensorboard:
                self._tensorboard.close()
            for tracker in self._trackers:
                tracker.close()

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(f"{self._path} or TensorBoard's files cannot be written: {error}.") from error


class ProgressDisplay:
    """A bar on a terminal; elsewhere a log line per report; nothing where `show` is False.

    Args:
        steps: Steps of the whole run.
        done: Steps done before.
        samples_per_step: Samples of one step, all processes together.
        show: Whether to show anything.
    """

    def __init__(self, steps: int, done: int, samples_per_step: int, show: bool) -> None:
        show = show and not is_quiet()
        self._lines = show and not is_watched()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=plain_console(stderr=True),
            disable=not show or self._lines,
        )
        self._task = self._bar.add_task("training", total=steps, completed=done, note="")
        self._steps, self._samples_per_step = steps, samples_per_step
        self._since, self._clock = done, time.perf_counter()
        self._first, self._start = done, self._clock

    def __enter__(self) -> Self:
        if not self._bar.disable:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._bar.disable:  # what never moved would still end in an empty line (rich 14.0)
            self._bar.stop()

    def advance(self, step: int, loss: float) -> None:
        """Move the bar to `step`."""
        speed = self._samples_per_step / self._seconds_per_step(step)
        self._bar.update(self._task, completed=step, note=f"loss {loss:.4f}, {speed:.0f} samples/s")

    def report(self, step: int, means: dict[str, float]) -> dict[str, float]:
        """Say the means since the last report where no bar shows them; return them with the speed.

        The time left is that of the pace since the start, validation and saving included.
        """
        speed = self._samples_per_step / self._seconds_per_step(step)
        if self._lines:
            since_start = time.perf_counter() - self._start
            left = time_left(since_start, step - self._first, self._steps - self._first)
            said = f"{in_words(means)}, {speed:.3g} samples/s, {left} left"
            logger.info("step %d of %d: %s", step, self._steps, said)
        self._since, self._clock = step, time.perf_counter()
        return means | {"samples_per_second": speed}

    def say(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Say other numbers of a step where no bar moves; return them."""
        if self._lines and values:
            logger.info("step %d of %d: %s", step, self._steps, in_words(values))
        return values

    def _seconds_per_step(self, step: int) -> float:
        return max(time.perf_counter() - self._clock, 1e-9) / max(step - self._since, 1)


def in_words(values: Mapping[str, float]) -> str:
    """Return numbers as one line, "loss 0.1234, learning_rate 2e-05"; shares of the time are left out."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name not in _UNSAID)
