"""Normalisation of states and actions by a dataset's statistics, and its inverse.

Modes, per dimension, where `low` and `high` are the 1 % and 99 % quantiles or the extremes:

    zscore               z = (x - mean) / std
    quantile, minmax     z = 2 (x - low) / (high - low) - 1        not clipped
    identity             z = x

The formula keeps denominators from being zero, and published weights keep theirs:

| formula | zscore | quantile, minmax | inverse |
|---|---|---|---|
| `vla` | std + 1e-6 | high - low + 1e-6 | exact |
| `openpi` | std + 1e-6 | high - low + 1e-6 | exact |
| `lerobot` | std + 1e-8 | high - low, where that is 0: 1e-8 | zscore without the epsilon |

The formula `vla` also guards dimensions that hardly vary. A constant dimension carries no information, and
dividing its float noise by 1e-6 would give the model large meaningless numbers: it becomes exactly 0, and the
inverse returns the constant.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, get_args

import torch

from vla.errors import ConfigError, StatisticsError, did_you_mean
from vla.transforms.base import Transform
from vla.transforms.statistics import VECTORS, FeatureStats, Statistics
from vla.types import Sample

NormalizationMode = Literal["zscore", "quantile", "minmax", "identity"]

EPSILON = 1e-6
"""Added to every denominator, as in the published code."""

# Relative spread below which a dimension is constant: two units in the last place of a float32 for the
# values themselves, and what summing them in float32 adds for a standard deviation.
CONSTANT_SPREAD = 2.5e-7
CONSTANT_STD = 1e-6

FAR = 100
"""Spreads from the centre beyond which a value cannot be meant: degrees for radians, say."""


@dataclass(frozen=True)
class NormalizationFormula:
    """The formula that a normalisation follows; see the module's table.

    Attributes:
        name: "vla" (this project's), "openpi" (which `transformers`' PI0 shares, with epsilon 1e-8) or
            "lerobot".
        epsilon: Added to a denominator, or used in place of one that is zero.

    Raises:
        ConfigError: The name is unknown, or epsilon is negative.
    """

    name: Literal["vla", "openpi", "lerobot"] = "vla"
    epsilon: float = EPSILON

    def __post_init__(self) -> None:
        known = ("vla", "openpi", "lerobot")
        if self.name not in known:
            hint = did_you_mean(str(self.name), known)
            raise ConfigError(f"Unknown formula of normalisation '{self.name}'; known are {known}.{hint}")
        if not 0 <= self.epsilon < math.inf:
            raise ConfigError(f"The epsilon of a normalisation must be at least 0, got {self.epsilon}.")


VLA_FORMULA = NormalizationFormula()
OPENPI_FORMULA = NormalizationFormula("openpi")
TRANSFORMERS_FORMULA = NormalizationFormula("openpi", 1e-8)
LEROBOT_FORMULA = NormalizationFormula("lerobot", 1e-8)


class _Normalizer(Protocol):
    def forward(self, x: torch.Tensor) -> torch.Tensor: ...

    def inverse(self, z: torch.Tensor) -> torch.Tensor: ...


class _ConstantSafe:
    """The formula `vla`: `z = (x - center) / scale` per dimension, and 0 for a constant dimension."""

    def __init__(self, feature: FeatureStats, mode: NormalizationMode, epsilon: float) -> None:
        low, high = _tensor(feature.min), _tensor(feature.max)
        if mode == "zscore":
            mean, std = _tensor(feature.mean), _tensor(feature.std)
            self.center, self.scale = mean, std + epsilon
            self.is_constant = (std <= CONSTANT_STD * mean.abs()) & (
                high - low <= CONSTANT_SPREAD * mean.abs()
            )
            self.is_flat = self.is_constant
            return
        first, last = _ends(feature, mode)
        noise = CONSTANT_SPREAD * torch.maximum(first.abs(), last.abs())
        reach = torch.maximum(high - first, first - low)
        self.is_flat = last - first <= noise
        # A gripper that moves in fewer than 1 % of the frames has q01 == q99 without being constant. Its
        # usual value becomes 0 and its extremes reach -1 or 1; the quantile formula would return a million.
        self.scale = torch.where(self.is_flat, reach + epsilon, (last - first + epsilon) / 2)
        self.center = torch.where(self.is_flat, first, first + self.scale)
        self.is_constant = self.is_flat & (reach <= noise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        center, scale = _like(x, self.center, self.scale)
        return ((x - center) / scale).masked_fill(self.is_constant.to(x.device), 0.0)

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        center, scale = _like(z, self.center, self.scale)
        return (z * scale).masked_fill(self.is_constant.to(z.device), 0.0) + center


class _ZScore:
    """The published z-scores as they are: their inverse may scale a little differently."""

    def __init__(self, feature: FeatureStats, formula: NormalizationFormula) -> None:
        self.mean, std = _tensor(feature.mean), _tensor(feature.std)
        self.scale = std + formula.epsilon
        self.back = std if formula.name == "lerobot" else self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, scale = _like(x, self.mean, self.scale)
        return (x - mean) / scale

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        mean, back = _like(z, self.mean, self.back)
        return z * back + mean


class _Range:
    """The published scaling of [low, high] to [-1, 1] as it is: `low` itself gives exactly -1."""

    def __init__(self, feature: FeatureStats, mode: NormalizationMode, formula: NormalizationFormula) -> None:
        self.low, high = _ends(feature, mode)
        width = high - self.low
        if formula.name == "lerobot":
            self.width = torch.where(width == 0, formula.epsilon, width)
        else:
            self.width = width + formula.epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, width = _like(x, self.low, self.width)
        return 2 * (x - low) / width - 1

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        low, width = _like(z, self.low, self.width)
        return (z + 1) / 2 * width + low


@dataclass(frozen=True)
class Normalize(Transform):
    """State and actions from robot units to roughly [-1, 1], and back.

    `forward` and `inverse` act on whichever of `modes`' features the sample holds, whatever their
    leading dimensions. The result is float32, or float64 where the input was.

    Attributes:
        statistics: Statistics of the dataset, after the transforms that come before this one.
        modes: Mode per feature: "zscore", "quantile", "minmax" or "identity".
        formula: The formula; this project's where not given.

    Raises:
        ConfigError: A mode is unknown.
        StatisticsError: The statistics lack one of the features or a vector that its mode needs, or a
            sample has another width.
    """

    name: ClassVar[str] = "normalize"

    statistics: Statistics
    modes: Mapping[str, NormalizationMode]
    formula: NormalizationFormula = field(default=VLA_FORMULA)

    def __post_init__(self) -> None:
        object.__setattr__(self, "modes", dict(self.modes))
        known = get_args(NormalizationMode)
        for feature, mode in self.modes.items():
            if mode not in known:
                raise ConfigError(
                    f"Unknown normalisation '{mode}' for {feature}; known are {', '.join(known)}."
                    f"{did_you_mean(str(mode), known)}"
                )
            if mode == "identity":
                continue
            if feature not in self.statistics.features:
                held = ", ".join(self.statistics.features) or "nothing"
                raise StatisticsError(f"There are no statistics of '{feature}', only of: {held}.")
            _check_vectors(feature, self.statistics.features[feature], mode, self.formula)

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Normalise `state` [..., m] and `actions` [..., a, m], where present."""
        return sample | {
            feature: normalizer.forward(self._checked(feature, sample[feature]))
            for feature, normalizer in self._normalizers.items()
            if feature in sample
        }

    def inverse(self, sample: Sample) -> Sample:
        """Bring `state` [..., m] and `actions` [..., a, m], where present, back to robot units."""
        return sample | {
            feature: normalizer.inverse(self._checked(feature, sample[feature]))
            for feature, normalizer in self._normalizers.items()
            if feature in sample
        }

    def to_json(self) -> dict[str, Any]:
        """Return the modes and the formula; the statistics have their own file."""
        return {"modes": dict(self.modes), "formula": asdict(self.formula)}

    @classmethod
    def from_json(cls, values: dict[str, Any], folder: Path) -> Self:
        """Rebuild from modes, formula (the project's own where none is named) and `statistics.json`."""
        values = dict(values)
        formula = NormalizationFormula(**values.pop("formula", values.pop("rule", {})))  # its older name
        return cls(statistics=Statistics.load(folder), formula=formula, **values)

    def save_files(self, folder: Path) -> None:
        """Write `statistics.json`."""
        self.statistics.save(folder)

    def without_guard(self) -> tuple[Statistics, dict[str, list[int]]]:
        """Return statistics with which a plain formula does what the guard does, for other libraries.

        A dimension that the guard treats gets other values in the vectors of its mode: a constant one such
        that its noise stays noise on the way in (state) and every answer becomes the constant to a millionth
        on the way out (actions), a rarely moving one such that the plain formula is the guard's. All others
        keep theirs.

        Returns:
            The statistics, and the changed dimensions by feature, where there are any.
        """
        features, changed = dict(self.statistics.features), {}
        for feature, normalizer in self._normalizers.items():
            if not isinstance(normalizer, _ConstantSafe) or not normalizer.is_flat.any():
                continue
            changed[feature] = normalizer.is_flat.nonzero()[:, 0].tolist()
            still = torch.ones_like(normalizer.scale)
            if feature == "actions":
                still = EPSILON * normalizer.center.abs().clamp(min=1.0)
            scale = torch.where(normalizer.is_constant, still, normalizer.scale)
            ends = {"mean": normalizer.center, "std": scale}
            if self.modes[feature] in _ENDS:
                low, high = _ENDS[self.modes[feature]]
                ends = {low: normalizer.center - scale, high: normalizer.center + scale}
            stats = features[feature]
            features[feature] = replace(
                stats,
                **{
                    name: tuple(
                        torch.where(normalizer.is_flat, value, _tensor(getattr(stats, name))).tolist()
                    )
                    for name, value in ends.items()
                },
            )
        return replace(self.statistics, features=features), changed

    def far(self, feature: str, x: torch.Tensor, names: Sequence[str] = ()) -> dict[int, str]:
        """Return what to say of the dimensions in which a value is far from all that was counted.

        Far is further than `FAR` times the spread from the centre: the standard deviation from the mean, or
        the width from `low` to `high` from their middle. A constant dimension that becomes 0 is never far.

        Args:
            feature: "state" or "actions".
            x: [..., m], as it comes to `forward`. With the mode identity, the z-score decides.
            names: The dimensions' names.
        """
        mode, stats = self.modes.get(feature), self.statistics.features.get(feature)
        normalizer = self._normalizers.get(feature)
        if normalizer is None:
            if (
                stats is None
                or stats.width != x.shape[-1]
                or not {"mean", "std", "min", "max"} <= {*stats.held}
            ):
                return {}
            normalizer, mode = _ConstantSafe(stats, "zscore", EPSILON), "zscore"
        limit = FAR if mode == "zscore" else 2 * FAR  # [-1, 1] is 2 wide
        rows = self._checked(feature, x).reshape(-1, x.shape[-1])
        far, told = normalizer.forward(rows).abs() > limit, {}
        for one in far.any(0).nonzero()[:, 0].tolist():
            name = f" ('{names[one]}')" if len(names) == x.shape[-1] else ""
            value = rows[far[:, one], one][-1].item()
            told[one] = f"{value:.6g} in dimension {one}{name}, in training {self._range(feature, one)}"
        return told

    def _range(self, feature: str, dimension: int) -> str:
        """Return in words where the values of a dimension lay."""
        stats = self.statistics.features[feature]
        for low, high in (_ENDS.get(self.modes.get(feature, ""), ("min", "max")), ("min", "max")):
            if low in stats.held and high in stats.held:
                return f"{getattr(stats, low)[dimension]:.6g} to {getattr(stats, high)[dimension]:.6g}"
        return f"{stats.mean[dimension]:.6g} with a standard deviation of {stats.std[dimension]:.6g}"

    @cached_property
    def _normalizers(self) -> dict[str, _Normalizer]:
        return {
            feature: _normalizer(self.statistics.features[feature], mode, self.formula)
            for feature, mode in self.modes.items()
            if mode != "identity"
        }

    def _checked(self, feature: str, x: torch.Tensor) -> torch.Tensor:
        width = self.statistics.features[feature].width
        if x.ndim == 0 or x.shape[-1] != width:
            got = x.shape[-1] if x.ndim else "a single number"
            raise StatisticsError(f"The checkpoint expects {feature} of {width} values, got {got}.")
        return x


_ENDS: dict[str, tuple[str, str]] = {"quantile": ("q01", "q99"), "minmax": ("min", "max")}


def _normalizer(feature: FeatureStats, mode: NormalizationMode, formula: NormalizationFormula) -> _Normalizer:
    if formula.name == "vla":
        return _ConstantSafe(feature, mode, formula.epsilon)
    return _ZScore(feature, formula) if mode == "zscore" else _Range(feature, mode, formula)


def _check_vectors(
    name: str, feature: FeatureStats, mode: NormalizationMode, formula: NormalizationFormula
) -> None:
    needed = {"mean", "std"} if mode == "zscore" else set(_ENDS[mode])
    if formula.name == "vla":
        needed |= {"min", "max"}  # by which it tells what is constant
    if missing := [vector for vector in VECTORS if vector in needed and vector not in feature.held]:
        raise StatisticsError(
            f"Normalising '{name}' by {mode} needs {' and '.join(missing)}, but its statistics hold only "
            f"{', '.join(feature.held)}. `vla stats DATASET` computes all of them."
        )


def _ends(feature: FeatureStats, mode: NormalizationMode) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = _ENDS[mode]
    return _tensor(getattr(feature, low)), _tensor(getattr(feature, high))


def _tensor(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _like(x: torch.Tensor, *constants: torch.Tensor) -> tuple[torch.Tensor, ...]:
    # At least float32: in bfloat16 a joint angle would come back 0.4 % off.
    dtype = torch.promote_types(x.dtype, torch.float32)
    return tuple(constant.to(x.device, dtype) for constant in constants)
