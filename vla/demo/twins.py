"""Two trainings at once: each its own `vla train` with a share of the processor's cores.

A small network gains little from a second thread, so two runs side by side take far less time than one
after the other. They are ordinary runs; their folders can be resumed and evaluated like any other.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vla.errors import TrainingError
from vla.machine import cores
from vla.terminal import ProgressLines, is_quiet, is_watched, plain_console
from vla.train.monitor.metrics import read_metrics
from vla.train.recipe import Recipe


@dataclass(frozen=True)
class Trained:
    """A finished run: its folder, its records, and how long it took, seconds."""

    folder: Path
    records: list[dict[str, float]]
    seconds: float

    @property
    def checkpoint(self) -> Path:
        """The policy folder to load."""
        return self.folder / "checkpoints" / "last"

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Return steps and values of one metric."""
        found = [(record["step"], record[name]) for record in self.records if name in record]
        return [step for step, _ in found], [value for _, value in found]


def train_side_by_side(recipes: Mapping[str, Recipe], show: bool = True) -> dict[str, Trained]:
    """Run every recipe in its own process and wait for all of them.

    Args:
        recipes: Recipes by the name to show, each with its own output folder.
        show: Progress: bars on a terminal, lines elsewhere.

    Raises:
        TrainingError: One of them failed; the others are stopped, and the message is its last line.
    """
    threads = max(1, cores() // len(recipes))
    start = time.monotonic()
    processes = {name: _start(recipe, threads) for name, recipe in recipes.items()}
    seconds: dict[str, float] = {}
    try:
        with _Bars(recipes, show) as bars:
            while len(seconds) < len(processes):
                time.sleep(0.5)
                for name, process in processes.items():
                    bars.show(name, read_metrics(Path(recipes[name].output) / "metrics.jsonl"))
                    status = process.poll()
                    if status is not None and name not in seconds:
                        _raise_if_failed(name, status, recipes[name])
                        seconds[name] = time.monotonic() - start
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.terminate()
                process.wait()
    return {
        name: Trained(Path(recipe.output), read_metrics(Path(recipe.output) / "metrics.jsonl"), seconds[name])
        for name, recipe in recipes.items()
    }


def _log_of(recipe: Recipe) -> Path:
    return Path(f"{recipe.output}.log")


def _start(recipe: Recipe, threads: int) -> "subprocess.Popen[bytes]":
    path = Path(f"{recipe.output}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", "vla", "train", str(path), f"train.threads={threads}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with _log_of(recipe).open("wb") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )


def _raise_if_failed(name: str, status: int, recipe: Recipe) -> None:
    if status == 0:
        return
    log = _log_of(recipe)
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else f"it ended with status {status} and no message"
    raise TrainingError(f"Training '{name}' failed: {last.removeprefix('vla: ')} (see {log})")


class _Bars:
    """A progress bar for each run: steps, loss, samples per second, time left."""

    def __init__(self, recipes: Mapping[str, Recipe], show: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        show = show and not is_quiet()
        self._lines = {name: ProgressLines(name) for name in recipes} if show and not is_watched() else {}
        self._totals = {name: recipe.train.steps for name, recipe in recipes.items()}
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} samples/s"),
            TimeRemainingColumn(),
            console=plain_console(stderr=True),
            disable=not show or not is_watched(),
        )
        self._tasks = {
            name: self._progress.add_task(name, total=recipe.train.steps, loss="-", rate="-")
            for name, recipe in recipes.items()
        }

    def __enter__(self) -> "_Bars":
        if not self._progress.disable:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._progress.disable:  # which would end in an empty line all the same (rich 14.0)
            self._progress.stop()

    def show(self, name: str, records: list[dict[str, float]]) -> None:
        """Update one bar to the newest record, or say it in a line from time to time."""
        losses = [record for record in records if "loss" in record]
        if losses:
            newest = losses[-1]
            rate = newest.get("samples_per_second")
            loss, speed = f"{newest['loss']:.3f}", "-" if rate is None else f"{rate:.0f}"
            step = int(newest["step"])
            self._progress.update(self._tasks[name], completed=step, loss=loss, rate=speed)
            if name in self._lines:
                self._lines[name](step, self._totals[name], f"loss {loss}, {speed} samples/s")
