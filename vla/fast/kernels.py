"""The fastest float32 matrix kernel of a CPU for a shape, found by trying them.

Which one it is depends on processor, shape and library: MKL or oneDNN, on weights as they are or laid out
beforehand for a number of rows.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

Kernel = Callable[[torch.Tensor], torch.Tensor]

ROUNDS = 5
"""Runs of each kernel, of which the fastest counts."""

MIN_MULTIPLICATIONS = 2_000_000
"""Smaller products are done before it matters."""


def has_choice(weight: torch.Tensor) -> bool:
    """Return whether there is more than one kernel for a matrix."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkl, "_mkl_reorder_linear_weight")
    )


def fastest(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Kernel:
    """Return the fastest way to compute `x @ weight.T + bias` for inputs of the shape of `x`.

    Args:
        x: `[..., i]`.
        weight: `[o, i]`.
        bias: `[o]`, or None.
    """
    rows = x.numel() // x.shape[-1]
    plain: Kernel = lambda x: F.linear(x, weight, bias)  # noqa: E731
    if x.numel() * weight.shape[0] < MIN_MULTIPLICATIONS:
        return plain
    mkl = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    onednn = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    kernels: list[Kernel] = [
        plain,
        lambda x: torch.ops.mkl._mkl_linear(x, mkl, weight, bias, rows),
        lambda x: torch.ops.mkldnn._linear_pointwise(x, onednn, bias, "none", [], ""),
    ]
    return min(kernels, key=lambda kernel: _seconds(kernel, x))


def _seconds(kernel: Kernel, x: torch.Tensor) -> float:
    kernel(x)
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        kernel(x)
        taken.append(time.perf_counter() - start)
    return min(taken)
