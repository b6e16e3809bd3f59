"""Normalisation layers."""

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    """Root-mean-square norm with Gemma's gain `1 + weight`, the weight starting at zero.

    A float32 island: the mean of squares loses too much in bfloat16.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis of `[..., d]`; the result keeps `x`'s dtype."""
        return F.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the width and epsilon in the module's picture."""
        return f"{self.weight.shape[0]}, eps={self.eps}"
