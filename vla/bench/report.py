"""What a measurement found, ready to be shown or stored."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vla.atomic import atomic_write
from vla.bench.timing import Timing


@dataclass(frozen=True)
class Row:
    """One part that was timed.

    Attributes:
        part: Its name.
        timing: Seconds of one call.
        flops: None where they were not counted.
        samples: Observations that a training step learns from; None where it is none.
    """

    part: str
    timing: Timing
    flops: int | None = None
    samples: int | None = None

    @property
    def samples_per_second(self) -> float | None:
        """At the median."""
        return None if self.samples is None else self.samples / self.timing.median

    @property
    def rate(self) -> float | None:
        """FLOP/s at the median."""
        return None if self.flops is None else self.flops / self.timing.median


@dataclass(frozen=True)
class Ratio:
    """One median over another."""

    name: str
    value: float


@dataclass
class Report:
    """A whole measurement.

    Attributes:
        machine: One line.
        versions: Versions of the libraries that the numbers depend on.
        settings: The options, by name.
        parameters: Number of the policy's parameters.
        weights_bytes: What they take in memory.
        build_seconds: To build or load the policy.
        peak: Matmul rate in FLOP/s by kernel; shares are of the highest.
        rows: What was timed.
        ratios: Between rows.
        skipped: Part -> why it was not timed.
        peak_memory: Most bytes held, after each stage.
        levels: Level of sampling -> what it takes: `warm_up_seconds` until each shape has been sampled once,
            the making of its form included, and the `programs` made in them; `resident_bytes` of all weights
            and `extra_bytes` next to the policy's own; `difference` of its chunk from the plain path's.
        largest_difference: Between our samples and the reference's; None without a reference.
    """

    machine: str
    versions: dict[str, str]
    settings: dict[str, Any]
    parameters: int = 0
    weights_bytes: int = 0
    build_seconds: float = 0.0
    peak: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    peak_memory: dict[str, int] = field(default_factory=dict)
    levels: dict[str, dict[str, float]] = field(default_factory=dict)
    largest_difference: float | None = None

    def share(self, row: Row) -> float | None:
        """Return the row's rate over the highest matmul rate."""
        return None if row.rate is None or not self.peak else row.rate / max(self.peak.values())

    def row(self, part: str) -> Row:
        """Return the row of that name."""
        return next(row for row in self.rows if row.part == part)

    def compare(self, name: str, part: str, base: str) -> None:
        """Add the ratio of two rows' medians."""
        self.ratios.append(Ratio(name, self.row(part).timing.median / self.row(base).timing.median))

    def save(self, path: Path | str) -> None:
        """Write everything as JSON, whole or not at all.

        Raises:
            SaveError: The file cannot be written.
        """
        values = asdict(self)
        for stored, row in zip(values["rows"], self.rows, strict=True):
            stored["flops_per_second"], stored["share_of_peak"] = row.rate, self.share(row)
            stored["samples_per_second"] = row.samples_per_second
        atomic_write(path, json.dumps(values, indent=2) + "\n")
