"""Embeddings of tokens and of the flow's time."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from vla.nn.linear import linear


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
        """Show vocabulary and width in the module's picture."""
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


def sinusoidal_embedding(
    t: torch.Tensor,
    width: int,
    min_period: float = 4e-3,
    max_period: float = 4.0,
    *,
    use_linspace: bool = False,
) -> torch.Tensor:
    """Embed a scalar in sines (first half) and cosines of geometrically spaced periods.

    Args:
        t: Any shape `[...]`; the flow's time, in [0, 1].
        width: Even width of the result.
        min_period: Shortest period.
        max_period: Longest period.
        use_linspace: Round the exponents as `torch.linspace` does, instead of as XLA does. The phase
            reaches `2 pi / min_period` = 1571 rad, so the last bit of a frequency shows in the fourth
            decimal; weights meet the rounding they were trained with.

    Returns:
        float32 `[..., width]`, whatever the model computes in: bfloat16 could not hold the phase.
    """
    size = width // 2
    if use_linspace:
        fraction = torch.linspace(0.0, 1.0, size, dtype=torch.float32, device=t.device)
    else:
        fraction = torch.arange(size, dtype=torch.float32, device=t.device) * (1.0 / max(size - 1, 1))
    frequency = 1.0 / (min_period * (max_period / min_period) ** fraction) * 2 * math.pi
    phase = t.float()[..., None] * frequency
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
