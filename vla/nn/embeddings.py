"""Embeddings of tokens and of the flow's time."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from vla.nn.linear import linear

Rounding = Literal["xla", "linspace", "float64"]
"""How the phase of a time embedding is rounded: implementations of the same formula differ."""


class TiedEmbedding(nn.Module):
    """A token table that also reads out logits; Gemma scales the embedded side by `sqrt(width)`.

    Both directions go through `forward`, so that hooks which gather sharded weights see either use.
    """

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, ids: torch.Tensor | None = None, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Embed `ids` `[b, l]` as `[b, l, d]`, or read `hidden` `[..., d]` out as logits `[..., vocab]`."""
        if ids is not None:
            return F.embedding(ids, self.weight) * math.sqrt(self.weight.shape[1])
        assert hidden is not None
        return linear(hidden, self.weight)

    def extra_repr(self) -> str:
        """Show vocabulary and width in the module's printed form."""
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


def sinusoidal_embedding(
    t: torch.Tensor,
    width: int,
    min_period: float = 4e-3,
    max_period: float = 4.0,
    *,
    rounding: Rounding = "xla",
) -> torch.Tensor:
    """Embed a scalar in sines (first half) and cosines of geometrically spaced periods.

    Args:
        t: Any shape `[...]`; the flow's time, in [0, 1].
        width: Even width of the result.
        min_period: Shortest period.
        max_period: Longest period.
        rounding: Weights must meet the rounding that they were trained with (see `policies.flow.time`).
            "xla" spaces the exponents in float32 as XLA does, "linspace" as `torch.linspace` does, and
            "float64" computes the whole phase in float64.

    Returns:
        float32 `[..., width]`, whatever the dtype of the model: bfloat16 could not hold the phase.
    """
    size = width // 2
    dtype = torch.float64 if rounding == "float64" else torch.float32
    if rounding == "xla":
        fraction = torch.arange(size, dtype=dtype, device=t.device) * (1.0 / max(size - 1, 1))
    else:
        fraction = torch.linspace(0.0, 1.0, size, dtype=dtype, device=t.device)
    frequency = 1.0 / (min_period * (max_period / min_period) ** fraction) * 2 * math.pi
    phase = t.to(dtype)[..., None] * frequency
    return torch.cat([phase.sin(), phase.cos()], dim=-1).float()
