"""Names shared by every room, and the shape check used at public boundaries.

Letters, package-wide: b batch, v view (camera slot), c channel, t query token, s key token, h head,
k key/value head, e head width, d model width, a action step, m action or state dimension, l text,
n noise draw.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vla.errors import ShapeError

Sample = dict[str, Any]
"""One frame on its way to the model, or one chunk on its way back (see `transforms.base`)."""

Batch = dict[str, torch.Tensor]
"""Keyword tensors of a policy's `forward`: `policy(**batch)`."""

SampleIds = list[tuple[Any, int]]
"""Episode (its number; in a mixture, text of the member and number) and frame of every sample of a batch."""


@dataclass(frozen=True)
class Window:
    """Which frames around the present one a policy reads and predicts, in steps of the dataset.

    Attributes:
        horizon: Steps of a chunk, `a`.
        state: Offsets of the states that are read, ascending, the last one 0: `(-1, 0)` is two frames.
        images: The same of the images of every camera.
        cameras: The same of single cameras where they differ, by camera slot.
        action_start: Offset of a chunk's first step; -1 begins it one step before the present.
        first_executable: Index in a chunk of the first step that is not past: `-action_start`, usually.
    """

    horizon: int
    state: tuple[int, ...] = (0,)
    images: tuple[int, ...] = (0,)
    cameras: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    action_start: int = 0
    first_executable: int = 0

    def of_camera(self, slot: str) -> tuple[int, ...]:
        """Return the offsets of one camera slot's images."""
        return self.cameras.get(slot, self.images)


@dataclass(frozen=True)
class DatasetFacts:
    """What the training data is like, as far as a policy's config depends on it.

    Attributes:
        cameras: Camera slots that any dataset fills.
        wrist_cameras: Those of them that ride on the gripper; None where nothing says.
        state_dim: Width of the widest state.
        action_dim: Width of the widest action.
        fps: Frames per second of the first dataset.
        vocabulary: Tokens of the tokenizer; None without text.
        robots: Names of a mixture's members, in order, for policies with weights of their own for each robot;
            none where there is one dataset.
    """

    cameras: tuple[str, ...]
    wrist_cameras: tuple[str, ...] | None
    state_dim: int
    action_dim: int
    fps: float
    vocabulary: int | None = None
    robots: tuple[str, ...] = ()


def check_shape(x: torch.Tensor, layout: str, name: str, **sizes: int) -> None:
    """Raise `ShapeError` unless `x` has the named axes, and the given sizes where they are known.

    Args:
        x: Tensor to check.
        layout: Axis letters, `"b a m"`. A number stands for an axis of exactly that size.
        name: What to call the tensor in the message.
        **sizes: Known sizes by letter, `a=50, m=32`.
    """
    axes = layout.split()
    expected = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in axes]
    fits = x.ndim == len(axes) and all(
        want is None or want == got for want, got in zip(expected, x.shape, strict=True)
    )
    if not fits:
        want = ", ".join(
            axis if axis.isdigit() or size is None else f"{axis}={size}"
            for axis, size in zip(axes, expected, strict=True)
        )
        raise ShapeError(f"{name} must have shape [{want}], got {list(x.shape)}.")
