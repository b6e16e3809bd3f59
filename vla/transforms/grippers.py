"""Signs and gripper scales: single dimensions between a robot's convention and that of the weights.

Each transform names its dimensions and the feature they belong to, `"state"` or `"actions"`: on some robots
the two are measured in different units. Features that a sample lacks are skipped, so an observation
without actions and a chunk without a state pass as well.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from vla.errors import ConfigError, ShapeError
from vla.transforms.base import Transform
from vla.types import Sample

_STEEPEST = 1e30
"""Largest slope or offset of a line: float32 ends at 3.4e38, and what is mapped is no more than 1e8."""

Feature = Literal["state", "actions"]


@dataclass(frozen=True)
class FlipSigns(Transform):
    """Changes the sign of dimensions; its own inverse.

    Attributes:
        state: Dimensions of the state `[..., m]` whose sign changes.
        actions: Dimensions of the actions `[..., a, m]` whose sign changes.

    Raises:
        ConfigError: A dimension is negative or named twice.
        ShapeError: A sample has fewer dimensions.
    """

    name: ClassVar[str] = "flip_signs"

    state: tuple[int, ...] = ()
    actions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for feature in get_args(Feature):
            object.__setattr__(self, feature, _checked_dims(getattr(self, feature), self.name))

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Change the signs of `state` and `actions`, where present."""
        for feature in get_args(Feature):
            sample = _apply(sample, feature, getattr(self, feature), torch.neg)
        return sample

    def inverse(self, sample: Sample) -> Sample:
        """Change the signs back, which is the same."""
        return self.forward(sample)


@dataclass(frozen=True)
class LinearMap(Transform):
    """An affine map through two points: a unit, a range, or "0 is open" against "0 is closed".

    Attributes:
        feature: `"state"` or `"actions"`.
        dims: Dimensions that are mapped.
        robot: Two different values in the robot's convention.
        policy: The same two in the policy's convention. Values beyond are extrapolated, not clipped.

    Raises:
        ConfigError: The feature is unknown, a dimension is negative or named twice, or the two values of a
            pair are equal, not finite, or so near each other that float32 could not hold what comes of them.
        ShapeError: A sample has fewer dimensions.
    """

    name: ClassVar[str] = "linear_map"

    feature: Feature
    dims: tuple[int, ...]
    robot: tuple[float, float]
    policy: tuple[float, float]

    def __post_init__(self) -> None:
        _check_feature(self.feature)
        object.__setattr__(self, "dims", _checked_dims(self.dims, self.name))
        for side in ("robot", "policy"):
            object.__setattr__(self, side, _checked_pair(getattr(self, side), f"{self.name}, {side}"))
        _check_steepness(self.robot, self.policy, f"{self.name}, robot and policy")

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Map from the robot's values to the policy's."""
        return _apply(sample, self.feature, self.dims, lambda x: _line(x, self.robot, self.policy))

    def inverse(self, sample: Sample) -> Sample:
        """Map from the policy's values to the robot's."""
        return _apply(sample, self.feature, self.dims, lambda x: _line(x, self.policy, self.robot))


@dataclass(frozen=True)
class SliderCrank(Transform):
    """A gripper measured by its opening, for a policy that expects the angle of its motor.

    The motor's horn of radius r moves a finger at distance L through an arm of length a:

        L = stroke[0] + g (stroke[1] - stroke[0])                 g: the robot's value, 0 closed, 1 open
        theta = arcsin(clip((r^2 + L^2 - a^2) / (2 r L), -1, 1))  radians
        g' = (theta - angle[0]) / (angle[1] - angle[0])           g': the policy's value

    and the inverse, L = r sin(theta) + sqrt(a^2 - r^2 cos(theta)^2). Where the clip acts (L beyond a - r and
    a + r) the inverse gives the nearest reachable L.

    Attributes:
        feature: `"state"` or `"actions"`.
        dims: Dimensions that are mapped.
        stroke: L at g = 0 and at g = 1, metres.
        arm_length: a, metres.
        horn_radius: r, metres; shorter than the arm.
        angle: theta at g' = 0 and at g' = 1, radians.

    Raises:
        ConfigError: The feature is unknown, a dimension is negative or named twice, a length is not positive
            or not finite, the horn is as long as the arm, or a pair's values are equal or as good as equal.
        ShapeError: A sample has fewer dimensions.
    """

    name: ClassVar[str] = "slider_crank"

    feature: Feature
    dims: tuple[int, ...]
    stroke: tuple[float, float]
    arm_length: float
    horn_radius: float
    angle: tuple[float, float]

    def __post_init__(self) -> None:
        _check_feature(self.feature)
        object.__setattr__(self, "dims", _checked_dims(self.dims, self.name))
        for pair in ("stroke", "angle"):
            object.__setattr__(self, pair, _checked_pair(getattr(self, pair), f"{self.name}, {pair}"))
            _check_steepness((0.0, 1.0), getattr(self, pair), f"{self.name}, {pair}")
        if min(self.stroke) <= 0 or not 0 < self.horn_radius < self.arm_length < math.inf:
            raise ConfigError(
                f"{self.name} needs a positive stroke and 0 < horn_radius < arm_length, all in metres; got "
                f"stroke {self.stroke}, horn_radius {self.horn_radius}, arm_length {self.arm_length}."
            )

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Map from openings to the policy's angles."""
        return _apply(sample, self.feature, self.dims, self._to_angle)

    def inverse(self, sample: Sample) -> Sample:
        """Map from the policy's angles to openings."""
        return _apply(sample, self.feature, self.dims, self._to_opening)

    def _to_angle(self, opening: torch.Tensor) -> torch.Tensor:
        r, a = self.horn_radius, self.arm_length
        finger = _line(opening, (0.0, 1.0), self.stroke)
        sine = (r**2 + finger**2 - a**2) / (2 * r * finger)
        return _line(torch.arcsin(sine.clamp(-1.0, 1.0)), self.angle, (0.0, 1.0))

    def _to_opening(self, angle: torch.Tensor) -> torch.Tensor:
        r, a = self.horn_radius, self.arm_length
        theta = _line(angle, (0.0, 1.0), self.angle)
        finger = r * theta.sin() + (a**2 - (r * theta.cos()) ** 2).sqrt()
        return _line(finger, self.stroke, (0.0, 1.0))


def _line(x: torch.Tensor, source: tuple[float, float], target: tuple[float, float]) -> torch.Tensor:
    """Map `x` by the line through the points (source, target)."""
    return target[0] + (x - source[0]) * (target[1] - target[0]) / (source[1] - source[0])


def _apply(
    sample: Sample, feature: str, dims: tuple[int, ...], change: Callable[[torch.Tensor], torch.Tensor]
) -> Sample:
    """Return the sample with `change` applied to some dimensions of a feature, if it has the feature.

    Computed in float64: only with a single rounding at the end does the inverse return the same float32.
    """
    if feature not in sample or not dims:
        return sample
    x = sample[feature]
    if x.ndim == 0 or x.shape[-1] <= max(dims):
        raise ShapeError(
            f"The robot's conventions name dimension {max(dims)} of {feature}, but it has shape "
            f"{list(x.shape)}."
        )
    changed = x.clone()
    chosen = list(dims)
    changed[..., chosen] = change(x[..., chosen].double()).to(x.dtype)
    return sample | {feature: changed}


def _check_feature(feature: str) -> None:
    if feature not in get_args(Feature):
        raise ConfigError(f"A gripper belongs to 'state' or 'actions', got '{feature}'.")


def _checked_dims(dims: tuple[int, ...], name: str) -> tuple[int, ...]:
    dims = tuple(dims)
    if any(type(dim) is not int or dim < 0 for dim in dims) or len(set(dims)) != len(dims):
        raise ConfigError(f"{name} takes different dimensions from 0, got {list(dims)}.")
    return dims


def _check_steepness(source: tuple[float, float], target: tuple[float, float], name: str) -> None:
    """Raise where a line, or its inverse, takes ordinary values beyond float32, or is lost in rounding."""
    for (a, b), (c, d) in ((source, target), (target, source)):
        slope = (d - c) / (b - a)
        if not abs(slope) <= _STEEPEST or not abs(c - a * slope) <= _STEEPEST:
            raise ConfigError(
                f"{name}: the line between {list(source)} and {list(target)} is too steep, one way or the "
                f"other: it takes {a} to {c}, and {slope:.3g} more for each 1, which float32 must hold. "
                "Give pairs of values that are further apart."
            )


def _checked_pair(pair: tuple[float, float], name: str) -> tuple[float, float]:
    pair = tuple(pair)  # type: ignore[assignment]
    if len(pair) != 2 or not all(math.isfinite(value) for value in pair) or pair[0] == pair[1]:
        raise ConfigError(f"{name}: two different finite numbers are needed, got {list(pair)}.")
    return pair
