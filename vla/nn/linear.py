"""Linear layers that take the faster of PyTorch's two float32 matrix kernels on a CPU.

PyTorch multiplies float32 matrices with MKL, which uses only half of the vector width of AMD's AVX-512
processors; oneDNN, which PyTorch brings along for bfloat16, uses all of it and is about twice as fast
there (docs/benchmarks.md). Everywhere else `linear` is `torch.nn.functional.linear`.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

MIN_MULTIPLICATIONS = 2_000_000
"""Smaller products are done before oneDNN is set up."""


class Linear(nn.Linear):
    """`torch.nn.Linear` through `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map `[..., in_features]` to `[..., out_features]`."""
        return linear(input, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `x @ weight.T + bias`.

    Args:
        x: `[..., i]`.
        weight: `[o, i]`.
        bias: `[o]`.

    Returns:
        `[..., o]`.
    """
    if _onednn_is_faster(x, weight):
        return _OneDnnLinear.apply(x, weight, bias)  # type: ignore[return-value]
    return F.linear(x, weight, bias)


def use_onednn_linear(module: nn.Module) -> None:
    """Replace every `torch.nn.Linear` inside a module by `Linear`; names and parameters stay."""
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = Linear


@cache
def _machine_prefers_onednn() -> bool:
    """Whether this is an AVX-512 processor that MKL does not know as Intel's."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8")


def _onednn_is_faster(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # first: what follows may read a file, which breaks a graph
        and x.device.type == "cpu"
        and x.ndim > 1
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= MIN_MULTIPLICATIONS
        and _machine_prefers_onednn()
        # Compilers, autocast, torch.func and sharded tensors know the ordinary operator only.
        and type(weight) in (nn.Parameter, torch.Tensor)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    """The operator has no gradient of its own; these are three products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        flat_grad = grad.flatten(0, -2)
        return (
            _product(grad, weight.t()) if needs_x else None,
            _product(flat_grad.t(), x.flatten(0, -2).t()) if needs_weight else None,
            flat_grad.sum(dim=0) if needs_bias else None,
        )
