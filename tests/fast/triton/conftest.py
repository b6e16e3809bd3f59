"""Where the kernels run: on a card where there is one, else in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
"""Largest difference from float64, relative to the largest number of the truth."""


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def guarded(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return room to write to, full of NaN, and the numbers behind it, which nothing may touch."""
    size = torch.Size(shape).numel()
    memory = torch.full((size + 64,), torch.nan, dtype=dtype, device=DEVICE)
    memory[size:] = 7.0
    return memory[:size].view(shape), memory[size:]


def compare(made: torch.Tensor, want: torch.Tensor) -> None:
    """Hold a result to its truth in float64."""
    assert made.shape == want.shape
    difference = (made.double() - want).abs().max().item()
    assert difference <= BOUNDS[made.dtype] * want.abs().max().item()


def normed(x: torch.Tensor, gain: torch.Tensor | None, eps: float) -> torch.Tensor:
    """The norm, row by row in float64; a gain goes into the rows before, in their dtype."""
    rms = (x.double().pow(2).mean(dim=-1, keepdim=True) + eps).sqrt()
    return (x if gain is None else (x.float() * gain).to(x.dtype)).double() / rms
