"""Rotary position embedding (Su et al., 2021), in Gemma's half-split pairing.

Channel `j` of a head turns together with channel `j + e/2` by the angle `position / theta^(2j/e)`.
"""

from typing import NamedTuple

import torch


class Rotary(NamedTuple):
    """Cosines and sines of one pass, computed once and shared by every layer: float32 `[b, 1, t, e/2]`."""

    cos: torch.Tensor
    sin: torch.Tensor


def rotary_angles(positions_bt: torch.Tensor, head_dim: int, theta: float = 10_000.0) -> Rotary:
    """Return the rotation of every token.

    Args:
        positions_bt: Integer positions `[b, t]`.
        head_dim: `e`, even.
        theta: Base of the geometric series of wavelengths.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions_bt.device, dtype=torch.float32) / head_dim
    # Angles stay float32 whatever the compute dtype: bfloat16 cannot tell position 800 from 801.
    angle = positions_bt[:, None, :, None].float() / theta**exponent
    return Rotary(angle.cos(), angle.sin())


def rotate(x_bhte: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotate queries or keys `[b, h, t, e]`; computed in float32, returned in `x`'s dtype."""
    first, second = x_bhte.float().chunk(2, dim=-1)
    turned = torch.cat(
        [first * rotary.cos - second * rotary.sin, second * rotary.cos + first * rotary.sin], dim=-1
    )
    return turned.to(x_bhte.dtype)
