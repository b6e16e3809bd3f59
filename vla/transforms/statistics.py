"""Statistics of a dataset's states and actions, saved next to the weights trained with them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Self

from vla.atomic import atomic_write, read_json
from vla.errors import StatisticsError, in_words
from vla.paths import expanded
from vla.types import shown

STATISTICS_FILE = "statistics.json"


@dataclass(frozen=True)
class FeatureStats:
    """Statistics of one feature, each a tuple with one value per dimension, in robot units.

    Published statistics often lack some: those are empty tuples.

    Attributes:
        mean: Arithmetic mean.
        std: Population standard deviation.
        min: Smallest value.
        max: Largest value.
        q01: 1 % quantile.
        q99: 99 % quantile.
        count: Number of vectors counted, 0 where that is unknown.

    Raises:
        StatisticsError: Vectors differ in length, are impossible, or there is none.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    min: tuple[float, ...] = ()
    max: tuple[float, ...] = ()
    q01: tuple[float, ...] = ()
    q99: tuple[float, ...] = ()
    count: int = 0

    def __post_init__(self) -> None:
        for name in VECTORS:
            values = _floats(name, getattr(self, name))
            object.__setattr__(self, name, values)
            if not all(math.isfinite(value) for value in values):
                raise StatisticsError(f"{name} holds a value that is not finite: {values}.")
        if isinstance(self.count, bool) or not isinstance(self.count, Integral) or self.count < 0:
            raise StatisticsError(f"count must be a whole number of at least 0, got {self.count!r}.")
        if not self.held:
            raise StatisticsError(f"They hold none of {', '.join(VECTORS)}.")
        for name in self.held:
            if len(getattr(self, name)) != self.width:
                raise StatisticsError(
                    f"{name} has {len(getattr(self, name))} values, but {self.held[0]} has {self.width}."
                )
        if any(value < 0 for value in self.std):
            raise StatisticsError(f"std holds a negative value: {self.std}.")
        for low, high in (("min", "max"), ("q01", "q99")):
            pairs = zip(getattr(self, low), getattr(self, high), strict=False)  # one of them may be absent
            if any(a > b for a, b in pairs):
                raise StatisticsError(f"{low} exceeds {high}: {getattr(self, low)}, {getattr(self, high)}.")

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the vectors that are there."""
        return tuple(name for name in VECTORS if getattr(self, name))

    @property
    def width(self) -> int:
        """Number of dimensions."""
        return len(getattr(self, self.held[0]))

    def first(self, width: int) -> "FeatureStats":
        """Return the statistics of the first `width` dimensions."""
        return replace(self, **{name: getattr(self, name)[:width] for name in self.held})


def _floats(name: str, given: Any) -> tuple[float, ...]:
    """Return a vector's values; text is not a number, even where it can be read as one."""
    try:
        values = () if isinstance(given, str | Mapping) else tuple(given)
        if len(values) == len(given) and not any(isinstance(value, str | bool) for value in values):
            return tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        pass
    raise StatisticsError(f"{name} must be a list of numbers, got {given!r}.")


VECTORS = tuple(field.name for field in fields(FeatureStats) if field.name != "count")
"""Names of the vectors that a feature's statistics may hold."""


@dataclass(frozen=True)
class Statistics:
    """What `Normalize` needs to know about a dataset, saved next to the weights as `statistics.json`.

    Attributes:
        features: Statistics by canonical name, `"state"` and `"actions"`.
        convention: What was counted, such as "frames and chunk steps inside the episode, after delta
            actions".
        source: Fingerprint of the dataset they were computed from.
    """

    features: dict[str, FeatureStats]
    convention: str = ""
    source: str = ""

    def save(self, folder: Path | str) -> None:
        """Write `statistics.json` into an existing folder, whole or not at all."""
        atomic_write(expanded(folder) / STATISTICS_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read `statistics.json` from a folder.

        Raises:
            StatisticsError: The file is missing, is not JSON, or does not hold statistics.
        """
        path = expanded(folder) / STATISTICS_FILE
        if not path.exists():
            raise StatisticsError(
                f"{path} is missing: without the statistics a policy was trained with, its actions have no "
                "unit. `vla stats DATASET` computes them."
            )
        values = read_json(path, StatisticsError)
        try:
            held = values.pop("features")
            for what, one in [("'features'", held), *(held.items() if isinstance(held, dict) else ())]:
                if not isinstance(one, dict):
                    raise TypeError(f"{what} must be a JSON object, got {shown(one)}")
            features = {name: FeatureStats(**feature) for name, feature in held.items()}
            if odd := [name for name, text in values.items() if not isinstance(text, str)]:
                raise TypeError(f"'{odd[0]}' is not text")
            return cls(features=features, **values)
        except (KeyError, TypeError, AttributeError) as error:
            raise StatisticsError(f"{path} does not hold statistics: {in_words(error)}.") from error
        except StatisticsError as error:
            raise StatisticsError(f"{path}: {error}") from error
