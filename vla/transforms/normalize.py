"""Statistics of a dataset, and the normalisation of states and actions by them.

Two laws, per dimension (specs: openpi's z-score for pi0, its quantile rule for the later models):

    zscore      z = (x - mean) / (std + 1e-6)
    quantile    z = 2 (x - q01) / (q99 - q01 + 1e-6) - 1        not clipped

A constant dimension carries nothing, and dividing its float noise by 1e-6 would hand the model large
numbers about nothing: it becomes exactly 0, and comes back as the constant.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch

from vla.atomic import atomic_write
from vla.errors import ConfigError, StatisticsError, did_you_mean
from vla.transforms.base import Transform
from vla.types import Sample

STATISTICS_FILE = "statistics.json"

NormalizationMode = Literal["zscore", "quantile"]

EPSILON = 1e-6
"""Added to every denominator, as in the published code."""

# Relative spread below which a dimension is constant: two units in the last place of a float32 for the
# values themselves, and what summing them in float32 adds for a standard deviation.
CONSTANT_SPREAD = 2.5e-7
CONSTANT_STD = 1e-6


@dataclass(frozen=True)
class FeatureStats:
    """Statistics of one feature, each a tuple with one value per dimension, in robot units.

    Attributes:
        mean: Arithmetic mean.
        std: Population standard deviation.
        min: Smallest value.
        max: Largest value.
        q01: 1 % quantile.
        q99: 99 % quantile.
        count: Number of vectors counted.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    count: int

    def __post_init__(self) -> None:
        for name in _VECTORS:
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != len(self.mean):
                raise StatisticsError(f"{name} has {len(values)} values, but mean has {len(self.mean)}.")
            if not all(math.isfinite(value) for value in values):
                raise StatisticsError(f"{name} holds a value that is not finite: {values}.")
        if any(value < 0 for value in self.std):
            raise StatisticsError(f"std holds a negative value: {self.std}.")
        for low, high in (("min", "max"), ("q01", "q99")):
            if any(a > b for a, b in zip(getattr(self, low), getattr(self, high), strict=True)):
                raise StatisticsError(f"{low} exceeds {high}: {getattr(self, low)}, {getattr(self, high)}.")

    @property
    def width(self) -> int:
        """Number of dimensions."""
        return len(self.mean)


_VECTORS = tuple(field.name for field in fields(FeatureStats) if field.name != "count")


@dataclass(frozen=True)
class Statistics:
    """What `Normalize` needs to know of a dataset, saved beside the weights as `statistics.json`.

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
        atomic_write(Path(folder) / STATISTICS_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read `statistics.json` from a folder.

        Raises:
            StatisticsError: The file is missing, is not JSON, or does not hold statistics.
        """
        path = Path(folder) / STATISTICS_FILE
        if not path.exists():
            raise StatisticsError(
                f"{path} is missing: without the statistics a policy was trained with, its actions have no "
                "unit. `vla stats DATASET` computes them."
            )
        try:
            values = json.loads(path.read_text())
            features = {name: FeatureStats(**feature) for name, feature in values.pop("features").items()}
            return cls(features=features, **values)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise StatisticsError(f"{path} does not hold statistics: {error}.") from error
        except StatisticsError as error:
            raise StatisticsError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Affine:
    """`z = (x - center) / scale` per dimension; a constant dimension has `is_constant` set."""

    center: torch.Tensor
    scale: torch.Tensor
    is_constant: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        center, scale, is_constant = self._like(x)
        return ((x - center) / scale).masked_fill(is_constant, 0.0)

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        center, scale, is_constant = self._like(z)
        return (z * scale).masked_fill(is_constant, 0.0) + center

    def _like(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # At least float32: in bfloat16 a joint angle would come back 0.4 % off.
        dtype = torch.promote_types(x.dtype, torch.float32)
        return (
            self.center.to(x.device, dtype),
            self.scale.to(x.device, dtype),
            self.is_constant.to(x.device),
        )


@dataclass(frozen=True)
class Normalize(Transform):
    """State and actions from robot units to roughly [-1, 1], and back.

    `forward` and `inverse` act on whichever of `modes`' features the sample holds, whatever their
    leading dimensions. The result is float32, or float64 where the input was.

    Attributes:
        statistics: Of the dataset, after the transforms that come before this one.
        modes: Law per feature, `"zscore"` or `"quantile"`.

    Raises:
        ConfigError: A mode is unknown.
        StatisticsError: The statistics lack one of the features, or a sample has another width.
    """

    name: ClassVar[str] = "normalize"

    statistics: Statistics
    modes: Mapping[str, NormalizationMode]

    def __post_init__(self) -> None:
        object.__setattr__(self, "modes", dict(self.modes))
        for feature, mode in self.modes.items():
            if mode not in get_args(NormalizationMode):
                hint = did_you_mean(str(mode), get_args(NormalizationMode))
                raise ConfigError(
                    f"Unknown normalisation '{mode}' for {feature}; known are zscore and quantile.{hint}"
                )
            if feature not in self.statistics.features:
                held = ", ".join(self.statistics.features) or "nothing"
                raise StatisticsError(f"There are no statistics of '{feature}', only of: {held}.")

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Normalise `state` [..., m] and `actions` [..., a, m], where present."""
        return sample | {
            feature: affine.forward(self._checked(feature, sample[feature]))
            for feature, affine in self._affines.items()
            if feature in sample
        }

    def inverse(self, sample: Sample) -> Sample:
        """Bring `state` [..., m] and `actions` [..., a, m], where present, back to robot units."""
        return sample | {
            feature: affine.inverse(self._checked(feature, sample[feature]))
            for feature, affine in self._affines.items()
            if feature in sample
        }

    def to_json(self) -> dict[str, Any]:
        """Return the modes; the statistics have their own file."""
        return {"modes": dict(self.modes)}

    @classmethod
    def from_json(cls, values: dict[str, Any], folder: Path) -> Self:
        """Rebuild from the modes and the folder's `statistics.json`."""
        return cls(statistics=Statistics.load(folder), **values)

    def save_files(self, folder: Path) -> None:
        """Write `statistics.json`."""
        self.statistics.save(folder)

    @cached_property
    def _affines(self) -> dict[str, _Affine]:
        laws = {"zscore": _zscore, "quantile": _quantile}
        return {
            feature: laws[mode](self.statistics.features[feature]) for feature, mode in self.modes.items()
        }

    def _checked(self, feature: str, x: torch.Tensor) -> torch.Tensor:
        width = self.statistics.features[feature].width
        if x.ndim == 0 or x.shape[-1] != width:
            got = x.shape[-1] if x.ndim else "a single number"
            raise StatisticsError(f"The checkpoint expects {feature} of {width} values, got {got}.")
        return x


def _zscore(stats: FeatureStats) -> _Affine:
    mean, std, low, high = (_tensor(x) for x in (stats.mean, stats.std, stats.min, stats.max))
    is_constant = (std <= CONSTANT_STD * mean.abs()) & (high - low <= CONSTANT_SPREAD * mean.abs())
    return _Affine(mean, std + EPSILON, is_constant)


def _quantile(stats: FeatureStats) -> _Affine:
    q01, q99, low, high = (_tensor(x) for x in (stats.q01, stats.q99, stats.min, stats.max))
    noise = CONSTANT_SPREAD * torch.maximum(q01.abs(), q99.abs())
    reach = torch.maximum(high - q01, q01 - low)
    is_flat = q99 - q01 <= noise
    # A gripper that moves in fewer than 1 % of the frames has q01 == q99 without being constant. Its usual
    # value becomes 0 and its extremes reach -1 or 1, where the quantile law would return a million.
    half = torch.where(is_flat, reach + EPSILON, (q99 - q01 + EPSILON) / 2)
    return _Affine(torch.where(is_flat, q01, q01 + half), half, is_flat & (reach <= noise))


def _tensor(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
