"""What a measurement of a server found, ready to be shown or stored."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla.atomic import atomic_write
from vla.bench.report import Ratio
from vla.bench.serving.load import Load
from vla.bench.timing import Timing


@dataclass(frozen=True)
class LoadRow:
    """One server under load.

    Attributes:
        name: Which.
        clients: Connections.
        seconds: Duration of the load.
        requests: Replies that came.
        per_second: Right replies per second.
        p50: Median from sending to having the reply, milliseconds.
        p95: 95th percentile.
        p99: 99th percentile.
        mean_batch: Mean number of observations in the pass of a reply.
        faults: See `Load.faults`; empty where every reply was there, its request's own, and right.
        said: See `Load.said`.
        largest_difference: See `Load.largest_difference`.
    """

    name: str
    clients: int
    seconds: float
    requests: int
    per_second: float
    p50: float
    p95: float
    p99: float
    mean_batch: float
    faults: dict[str, int]
    said: dict[str, str]
    largest_difference: float

    @classmethod
    def of(cls, name: str, clients: int, load: Load) -> "LoadRow":
        """Summarise a load."""
        taken = load.milliseconds or [float("nan")]
        p50, p95, p99 = (float(one) for one in np.percentile(taken, (50, 95, 99)))
        rows = load.batches.total()
        return cls(
            name, clients, load.seconds, len(load.milliseconds), load.per_second, p50, p95, p99,
            sum(size * count for size, count in load.batches.items()) / rows if rows else float("nan"),
            dict(load.faults), load.said, load.largest_difference,
        )  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """A server's resident memory under load.

    Attributes:
        samples: (seconds since the load began, bytes).
    """

    samples: list[tuple[float, int]]

    @property
    def first(self) -> float:
        """Median bytes of the second quarter of the load: after the first replies, which fill caches."""
        quarter = max(1, len(self.samples) // 4)
        return self._median(self.samples[quarter : 2 * quarter] or self.samples)

    @property
    def last(self) -> float:
        """Median bytes of the last quarter."""
        return self._median(self.samples[-max(1, len(self.samples) // 4) :])

    @property
    def growth(self) -> float:
        """Relative growth from the one to the other."""
        return self.last / self.first - 1

    @staticmethod
    def _median(samples: list[tuple[float, int]]) -> float:
        return float(np.median([size for _, size in samples]))


@dataclass
class ServingReport:
    """A whole measurement.

    Attributes:
        machine: One line.
        versions: Versions of the libraries that the numbers depend on.
        settings: The options, by name; the token left out.
        server: What the server says of its policy: checkpoint, revision, version, level.
        frame_bytes: Size of a request.
        checked: What the replies were compared with.
        loads: The servers under load.
        slice_ratios: Throughput over that of the server with `--max-batch 1`, slice by slice.
        calls: Seconds of single calls by kind, taken in turn.
        ratios: Between them.
        memory: Memory of the server that batches; None where it is not measured.
        exits: Exit status of every server that was ended.
    """

    machine: str
    versions: dict[str, str]
    settings: dict[str, Any]
    server: dict[str, Any] = field(default_factory=dict)
    frame_bytes: int = 0
    checked: str = ""
    loads: list[LoadRow] = field(default_factory=list)
    slice_ratios: list[float] = field(default_factory=list)
    calls: dict[str, Timing] = field(default_factory=dict)
    ratios: list[Ratio] = field(default_factory=list)
    memory: Memory | None = None
    exits: dict[str, int] = field(default_factory=dict)

    def save(self, path: Path | str) -> None:
        """Write everything as JSON, whole or not at all.

        Raises:
            SaveError: The file cannot be written.
        """
        values = asdict(self)
        if self.memory is not None:
            values["memory"] |= {"first": self.memory.first, "last": self.memory.last}
            values["memory"]["growth"] = self.memory.growth
        atomic_write(path, json.dumps(values, indent=2) + "\n")
