"""Linear layers in 4 bits without values: what they take, and what is there while they multiply."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a 4-bit weight: half a byte, an 8-bit scale per 64, and a float32 scale per 256 of those."""


class FourBitLinear(nn.Linear):
    """A frozen linear layer stored in 4 bits, whose whole matrix is there while it multiplies."""

    compute_dtype: torch.dtype

    @classmethod
    def of(cls, plain: nn.Linear) -> "FourBitLinear":
        """Return one of a plain layer's sizes, which computes in its dtype."""
        stored = cls(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        stored.compute_dtype, stored.bias = plain.weight.dtype, plain.bias
        size = torch.empty(round(plain.weight.numel() * FOUR_BIT), dtype=torch.uint8, device="meta")
        stored.weight = nn.Parameter(size, requires_grad=False)
        return stored

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map `[..., in_features]` to `[..., out_features]`."""
        input = input.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return _FourBitProduct.apply(input, self.weight, (self.out_features, self.in_features), bias)  # type: ignore[return-value]


class _FourBitProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, stored: torch.Tensor, shape: tuple[int, int], bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.shape = shape
        return F.linear(x, x.new_empty(shape), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return grad @ grad.new_empty(ctx.shape), None, None, None
