"""What the strategies came to, in numbers."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla.atomic import atomic_write
from vla.bench.execution.episodes import Trace
from vla.eval.outcome import success_interval

Z95 = 1.959964


@dataclass(frozen=True)
class Row:
    """One strategy.

    Attributes:
        name: What it is.
        episodes: How many were run.
        success: Share that reached the target, with its 95 % interval.
        interval: See `success`.
        loss: Share of layouts lost against the same policy without latency, less those won; paired.
        loss_interval: Its 95 % interval.
        collided: Share that touched the cup.
        seconds: Mean length of the successful episodes.
        jump: Mean distance between consecutive actions across a seam, over the median within chunks.
        jump_p95: The same for the 95th percentile across a seam.
        excess: `jump` less the mean within chunks over its median: what seams add to the motion itself.
    """

    name: str
    episodes: int
    success: float
    interval: tuple[float, float]
    loss: float
    loss_interval: tuple[float, float]
    collided: float
    seconds: float
    jump: float
    jump_p95: float
    excess: float


@dataclass(frozen=True)
class Finding:
    """A number, and what it should be: at most (or, of a success, at least) `bound`."""

    name: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is as it should be."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass
class ExecutionReport:
    """A whole measurement.

    Attributes:
        machine: One line.
        versions: Versions of everything that matters.
        settings: The options, by name.
        rows: Every strategy; the first is the one without latency.
        real_time: Those that met layouts in real time, compared with the first.
        late: Share of control steps that began late by more than a fifth of a period there, by strategy.
    """

    machine: str
    versions: dict[str, str]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    real_time: list[Row] = field(default_factory=list)
    late: dict[str, float] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        """Return the strategy of that name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def findings(self) -> list[Finding]:
        """Return what real-time chunking is held to; a policy that does not react fails the first."""
        named = {row.name: row for row in self.rows}
        found = [Finding("success without latency", self.rows[0].success, 0.9, at_least=True)]
        for name in ("guided", "prefix"):
            if name in named:
                found.append(Finding(f"{name}: layouts lost to latency", named[name].loss, 0.03))
                jumps = named[name].jump / named["asynchronous"].jump
                found.append(Finding(f"{name}: jump / that of asynchronous", jumps, 1 / 3))
        return found

    def save(self, path: Path) -> None:
        """Write everything as JSON, whole or not at all."""
        values = asdict(self) | {"findings": [asdict(one) | {"met": one.met} for one in self.findings]}
        atomic_write(path, json.dumps(values, indent=2, default=str) + "\n")


def row_of(name: str, traces: Sequence[Trace], without: Sequence[Trace], fps: int) -> Row:
    """Return a strategy's numbers.

    Args:
        name: What it is.
        traces: Its episodes.
        without: Those of the same layouts without latency.
        fps: Control steps per second.
    """
    wins = [one.success for one in traces]
    lost = np.array(
        [float(before.success) - float(one.success) for before, one in zip(without, traces, strict=True)]
    )
    loss, interval = paired(lost)
    lengths = [len(one.actions) / fps for one in traces if one.success]
    across, within = distances(traces)
    median = float(np.median(within)) if len(within) else math.nan
    jumps = across / median if len(across) and median > 0 else np.array([math.nan])
    return Row(
        name,
        len(traces),
        float(np.mean(wins)),
        success_interval(sum(wins), len(wins)),
        loss,
        interval,
        float(np.mean([one.collided for one in traces])),
        float(np.mean(lengths)) if lengths else math.nan,
        float(jumps.mean()),
        float(np.quantile(jumps, 0.95)),
        float(jumps.mean() - within.mean() / median) if len(within) and median > 0 else math.nan,
    )


def paired(differences: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Return the mean of paired differences `[n]`, and its 95 % interval (normal approximation)."""
    mean = float(differences.mean())
    spread = (
        Z95 * float(differences.std(ddof=1)) / math.sqrt(len(differences))
        if len(differences) > 1
        else math.inf
    )
    return mean, (mean - spread, mean + spread)


def distances(traces: Sequence[Trace]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances between consecutive actions across seams, and within chunks.

    Steps from or to a hold action are seams as well: the robot stops, and starts.
    """
    across: list[np.ndarray] = []
    within: list[np.ndarray] = []
    for one in traces:
        moved = np.linalg.norm(np.diff(one.actions.astype(np.float64), axis=0), axis=1)
        seam = np.diff(one.sources) != 0
        still = (one.sources[1:] == -1) & ~seam
        across.append(moved[seam])
        within.append(moved[~seam & ~still])
    return np.concatenate(across), np.concatenate(within)
