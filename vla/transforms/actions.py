"""Transforms of state and action vectors: actions relative to the state, and padding to the model's width."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from vla.errors import ConfigError, ShapeError
from vla.transforms.base import Transform
from vla.types import Sample

REFERENCE_STATE = "reference_state"
"""Key under which `DeltaActions` hands an observation's own state to the way back."""


def check_delta_places(
    mask: Sequence[bool], state_names: Sequence[str], action_names: Sequence[str], source: str
) -> None:
    """Check that no delta takes another dimension's state: it takes the one of the same place.

    Names that do not occur in the state say nothing about places, so `dx` may be relative to `x`.

    Args:
        mask: True where a dimension of the actions becomes relative to the state.
        state_names: Names of the state's dimensions, in order.
        action_names: Names of the actions' dimensions, in order.
        source: Whose names they are, for the message.

    Raises:
        ConfigError: A masked dimension's name stands at another place in the state.
    """
    for place, (is_relative, name) in enumerate(zip(mask, action_names, strict=False)):
        there = state_names[place] if place < len(state_names) else None
        if is_relative and there != name and name in state_names:
            taken = "which the state does not have" if there is None else f"which is '{there}'"
            raise ConfigError(
                f"The action '{name}' (dimension {place}) cannot be relative to the state: a delta subtracts "
                f"the state's dimension of the same place, {taken}, and '{name}' is the state's dimension "
                f"{list(state_names).index(name)} ({source}). Give state and actions one order, or leave "
                f"'{name}' out of the delta mask."
            )


@dataclass(frozen=True)
class DeltaActions(Transform):
    """Actions as differences to the present state, which a chunk begins with unless it has a past.

    One reference state serves the whole chunk; these are not step-to-step differences. Of several states,
    `[o, m]`, it is the last one. Dimensions whose
    mask is False (grippers, usually) stay absolute. `inverse` needs the `state` in robot units. An
    observation, which has no actions yet, takes its state along as `reference_state`: the one that has
    been through normalisation and back has lost what a dimension that never varied in training measures.

    Attributes:
        mask: True where a dimension becomes relative; shorter than the actions, the rest stay absolute.

    Raises:
        ShapeError: Actions or state have fewer dimensions than the mask asks for, or the state is missing.
    """

    name: ClassVar[str] = "delta_actions"

    mask: tuple[bool, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", tuple(self.mask))
        if not all(isinstance(entry, bool) for entry in self.mask):
            raise ConfigError(f"The mask of delta actions holds True and False only, got {self.mask}.")

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Subtract the state from the actions [..., a, m]; without actions, note the state.

        The state is [..., m], or [..., o, m] with a past: then it has as many axes as the actions.
        """
        if "actions" not in sample:
            return sample | {REFERENCE_STATE: sample["state"]} if "state" in sample else sample
        return sample | {"actions": sample["actions"] - self._reference(sample)}

    def inverse(self, sample: Sample) -> Sample:
        """Add the noted state, else the sample's, to the actions [..., a, m], where there are any."""
        if "actions" not in sample:
            return sample
        return sample | {"actions": sample["actions"] + self._reference(sample)}

    def _reference(self, sample: Sample) -> torch.Tensor:
        """Return the state where the mask is True and 0 elsewhere, [..., 1, m] as wide as the actions."""
        actions = sample["actions"]
        state = sample.get(REFERENCE_STATE, sample.get("state"))
        if state is None:
            raise ShapeError("Delta actions are relative to the state, and the sample holds no 'state'.")
        if actions.ndim == state.ndim and state.ndim > 1:
            state = state[..., -1, :]  # of a past, oldest first, the present one
        if actions.ndim != state.ndim + 1:
            raise ShapeError(
                f"One state serves one chunk: state {list(state.shape)} does not fit actions "
                f"{list(actions.shape)}."
            )
        width = actions.shape[-1]
        if len(self.mask) > width:
            raise ShapeError(f"The delta mask has {len(self.mask)} dimensions, the actions only {width}.")
        relative = [index for index, is_relative in enumerate(self.mask) if is_relative]
        if relative and relative[-1] >= state.shape[-1]:
            raise ShapeError(
                f"The delta mask makes dimension {relative[-1]} relative, but the state has only "
                f"{state.shape[-1]} values."
            )
        reference = state.new_zeros(*state.shape[:-1], 1, width)
        reference[..., 0, relative] = state[..., relative]
        return reference


@dataclass(frozen=True)
class PadDimensions(Transform):
    """State and actions between the robot's width and the model's, by zeros at the end.

    Attributes:
        state_dim: Values in the robot's state.
        action_dim: Values in the robot's action.
        max_state_dim: Values in the model's state.
        max_action_dim: Values in the model's action.

    Raises:
        ConfigError: The robot has more dimensions than the model.
        ShapeError: A sample has another width than the configured one.
    """

    name: ClassVar[str] = "pad_dimensions"

    state_dim: int
    action_dim: int
    max_state_dim: int
    max_action_dim: int

    def __post_init__(self) -> None:
        for what, width, limit in (
            ("state", self.state_dim, self.max_state_dim),
            ("action", self.action_dim, self.max_action_dim),
        ):
            if not 0 <= width <= limit:
                raise ConfigError(
                    f"The robot's {what} has {width} values; the model takes 0 to {limit} "
                    f"(max_{what}_dim={limit})."
                )

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Pad `state` [..., m] and `actions` [..., a, m], where present.

        Adds `action_dim_is_pad`, bool [max_action_dim], True where a dimension is padding.
        """
        padded = dict(sample)
        for key, width, limit in self._widths():
            if key in sample:
                padded[key] = F.pad(_of_width(sample[key], width, key), (0, limit - width))
        padded["action_dim_is_pad"] = torch.arange(self.max_action_dim) >= self.action_dim
        return padded

    def inverse(self, sample: Sample) -> Sample:
        """Slice `state` and `actions`, where present, back to the robot's widths."""
        sliced = dict(sample)
        for key, width, limit in self._widths():
            if key in sample:
                sliced[key] = _of_width(sample[key], limit, key)[..., :width]
        return sliced

    def _widths(self) -> tuple[tuple[str, int, int], ...]:
        return (
            ("state", self.state_dim, self.max_state_dim),
            ("actions", self.action_dim, self.max_action_dim),
        )


def _of_width(x: torch.Tensor, width: int, name: str) -> torch.Tensor:
    if x.ndim == 0 or x.shape[-1] != width:
        raise ShapeError(f"{name} must end in {width} values, got shape {list(x.shape)}.")
    return x
