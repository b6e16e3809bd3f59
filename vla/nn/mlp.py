"""Feed-forward blocks."""

import torch
import torch.nn.functional as F
from torch import nn

from vla.nn.linear import Linear


class GatedMLP(nn.Module):
    """Gemma's GeGLU: `down(gelu_tanh(gate(x)) * up(x))`, without biases (Shazeer, 2020)."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, hidden_width, bias=False)
        self.up_proj = Linear(width, hidden_width, bias=False)
        self.down_proj = Linear(hidden_width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[..., d]` to `[..., d]`."""
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))
