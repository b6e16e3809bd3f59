"""Normalisation layers."""

import torch
import torch.nn.functional as F
from torch import nn

from vla.nn.linear import Linear


class RMSNorm(nn.Module):
    """Root-mean-square norm with Gemma's gain `1 + weight`, the weight starting at zero.

    Always in float32: the mean of squares loses too much in bfloat16.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis of `[..., d]`; the result keeps `x`'s dtype."""
        return F.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the width and epsilon in the module's printed form."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class Modulation(Linear):
    """Linear layer from a condition to scale, shift and gate; starts at zero, which closes the gate."""

    def __init__(self, condition_width: int, width: int) -> None:
        super().__init__(condition_width, 3 * width)

    def reset_parameters(self) -> None:
        """Start at zero (adaLN-Zero, Peebles and Xie, 2023)."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class AdaptiveRMSNorm(nn.Module):
    """Root-mean-square norm whose gain `1 + scale` and shift come from a condition (the flow's time).

    It has no weight of its own: `dense` makes `[scale, shift, gate]` of the condition, and the gate is for
    the residual branch that the norm feeds. Always in float32, as `RMSNorm`.
    """

    def __init__(self, width: int, condition_width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.dense = Modulation(condition_width, width)

    def forward(self, x: torch.Tensor, modulation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalise the last axis of `[b, t, d]`.

        Args:
            x: `[b, t, d]`.
            modulation: `dense(condition)`, `[b, 1, 3 d]` or `[b, t, 3 d]`.

        Returns:
            The normalised `x`, in its dtype, and the gate `[b, 1 or t, d]`.
        """
        scale, shift, gate = modulation.chunk(3, dim=-1)
        normed = F.rms_norm(x.float(), x.shape[-1:], None, self.eps)
        return (normed * (1.0 + scale.float()) + shift.float()).to(x.dtype), gate
