"""What the trainings showed, ready to be shown or stored."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vla.atomic import atomic_write
from vla.bench.learning.curve import Point
from vla.bench.timing import Timing


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: What distinguishes it.
        seed: Seed of weights, order and noise.
        steps: Optimiser steps.
        batch: Observations per step.
        step_seconds: Seconds of one step.
        points: Its held-out losses.
    """

    name: str
    seed: int
    steps: int
    batch: int
    step_seconds: Timing
    points: Sequence[Point] = ()


@dataclass(frozen=True)
class Finding:
    """One number, once per repetition; None where there is none. `aim` is what it should be, in words."""

    name: str
    values: Sequence[float | None]
    aim: str = ""

    @property
    def median(self) -> float | None:
        """The middle of all repetitions, None where one of them has no number."""
        found = [value for value in self.values if value is not None]
        return statistics.median(found) if len(found) == len(self.values) else None


@dataclass
class LearningReport:
    """A whole measurement.

    Attributes:
        machine: One line.
        versions: Versions of everything that matters.
        settings: The options, by name.
        runs: Every training.
        findings: What follows from them.
    """

    machine: str
    versions: dict[str, str]
    settings: dict[str, Any]
    runs: list[Run] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def finding(self, name: str) -> Finding:
        """Return the finding of that name."""
        return next(finding for finding in self.findings if finding.name == name)

    def save(self, path: Path | str) -> None:
        """Write everything as JSON, whole or not at all.

        Raises:
            SaveError: The file cannot be written.
        """
        values = asdict(self)
        for stored, finding in zip(values["findings"], self.findings, strict=True):
            stored["median"] = finding.median
        atomic_write(path, json.dumps(values, indent=2, default=str) + "\n")
