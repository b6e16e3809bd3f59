"""The range of a dataset's states and actions in robot units, from the statistics that a pipeline carries.

Statistics are counted where normalisation meets the values: after the robot's own signs and scales, and
relative actions as differences to the state. So they are taken back through the transforms before.
"""

from dataclasses import dataclass

import numpy as np
import torch

from vla.transforms.actions import DeltaActions
from vla.transforms.base import Pipeline, Transform
from vla.transforms.grippers import FlipSigns, LinearMap, SliderCrank
from vla.transforms.normalize import Normalize
from vla.transforms.statistics import FeatureStats, Statistics

_DIMENSION_BY_DIMENSION = (FlipSigns, LinearMap, SliderCrank)
"""What may lie between the robot and the statistics: monotone maps of single dimensions."""


@dataclass(frozen=True)
class Range:
    """Lowest and highest value of each dimension, robot units; infinite where nothing says.

    Attributes:
        low: `[d]`.
        high: `[d]`.
        source: Where they come from, in words; it begins with "none" where nothing says.
    """

    low: np.ndarray
    high: np.ndarray
    source: str

    def widened(self, share: float) -> "Range":
        """Return the range wider by a share of itself at either end; a constant has room for rounding."""
        with np.errstate(invalid="ignore"):
            room = np.maximum(
                share * (self.high - self.low),
                1e-6 * np.maximum(1.0, np.maximum(np.abs(self.low), np.abs(self.high))),
            )
            low, high = self.low - room, self.high + room
        unlimited = ~np.isfinite(self.low) | ~np.isfinite(self.high)
        low, high = np.where(unlimited, self.low, low), np.where(unlimited, self.high, high)
        return Range(low, high, self.source)


def unlimited(width: int, why: str) -> Range:
    """Return the range of `width` dimensions of which nothing is known."""
    return Range(np.full(width, -np.inf), np.full(width, np.inf), f"none: {why}")


def dataset_ranges(pipeline: Pipeline, state_dim: int, action_dim: int) -> tuple[Range, Range]:
    """Return the ranges of the states and of the actions that a policy was trained on.

    An action that is learned relative to the state lies between the least state plus the least difference and
    the largest of both: its own range was not counted.

    Args:
        pipeline: The robot's.
        state_dim: Values in the robot's state.
        action_dim: Values in one of its actions.
    """
    statistics = pipeline.statistics
    delta = pipeline.before(Normalize).find(DeltaActions)  # behind the statistics it does not concern them
    earlier = pipeline.before(Normalize if delta is None else DeltaActions)
    why = _why_not(statistics, earlier.transforms)
    if why:
        return unlimited(state_dim, why), unlimited(action_dim, why)
    state = _ends(statistics.features.get("state"), state_dim)
    actions = _ends(statistics.features.get("actions"), action_dim)
    if actions is not None and delta is not None and any(delta.mask):
        if state is None:
            why = "actions are relative to the state, of which there are no statistics"
            return unlimited(state_dim, "there are no statistics of the state"), unlimited(action_dim, why)
        ends, source = actions
        ends = ends.clone()
        for dim in (dim for dim, relative in enumerate(delta.mask) if relative):
            ends[:, dim] += state[0][:, dim]
        actions = ends, f"{source}; relative actions: the state's range and that of the differences"
    # The others act on images and texts, or on padding, which is cut off already.
    before = pipeline.replaced(
        [one for one in earlier.transforms if isinstance(one, _DIMENSION_BY_DIMENSION)]
    )
    return (
        _in_robot_units(before, "state", state, state_dim),
        _in_robot_units(before, "actions", actions, action_dim),
    )


def _why_not(statistics: Statistics | None, before: tuple[Transform, ...]) -> str:
    """Return why statistics say nothing about robot units, or an empty text."""
    if statistics is None:
        return "the checkpoint carries no statistics"
    for transform in before:
        if isinstance(transform, _DIMENSION_BY_DIMENSION):
            continue
        if not type(transform).__module__.startswith("vla.transforms."):
            return f"the step '{transform.name}' stands between the robot and its statistics"
    return ""


def _ends(feature: FeatureStats | None, width: int) -> tuple[torch.Tensor, str] | None:
    """Return the lowest and highest values [2, d], and what they are."""
    if feature is None or feature.width < width:
        return None
    for low, high, words in (
        ("min", "max", "the dataset's range"),
        ("q01", "q99", "the dataset's 1 % and 99 % quantiles (its range is not recorded)"),
    ):
        if {low, high} <= set(feature.held):
            ends = torch.tensor([getattr(feature, low)[:width], getattr(feature, high)[:width]])
            return ends.double(), words
    return None


def _in_robot_units(
    before: Pipeline, feature: str, ends: tuple[torch.Tensor, str] | None, width: int
) -> Range:
    if ends is None:
        return unlimited(width, "the statistics hold neither range nor quantiles")
    values, source = ends
    # One vector at a time: a state of two rows would be one with a past.
    rows = [row if feature == "state" else row[None] for row in values]
    back = torch.stack([before.inverse({feature: row})[feature].reshape(-1) for row in rows])
    made = np.sort(back.double().numpy(), axis=0)  # a flipped dimension exchanges its ends
    low, high = made
    known = np.isfinite(low) & np.isfinite(high)
    return Range(np.where(known, low, -np.inf), np.where(known, high, np.inf), source)
