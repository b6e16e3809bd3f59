"""Names shared by every room, and the shape check used at public boundaries.

Letters, package-wide: b batch, v view (camera slot), c channel, t query token, s key token, h head,
k key/value head, e head width, d model width, a action step, m action or state dimension, l text,
n noise draw.
"""

from typing import Any

import torch

from vla.errors import ShapeError

Sample = dict[str, Any]
"""One frame on its way to the model, or one chunk on its way back (see `transforms.base`)."""

Batch = dict[str, torch.Tensor]
"""Keyword tensors of a policy's `forward`: `policy(**batch)`."""


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
