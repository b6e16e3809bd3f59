"""What runs without values, run as a GPU would run it: its kernels for attention and norms, and autocast.

PyTorch chooses kernels by device, and the meta device has none: attention would be plain products, which keep
every score for the backward pass, and an RMS norm its pieces. A GPU has fused kernels for both, with masks
and with fewer key heads than query heads as well; older PyTorch has none for the two together and keeps more.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

_Tensor = torch.Tensor

_LOWER = {
    F.linear, F.bilinear, torch.conv1d, torch.conv2d, torch.conv3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
    torch.matmul, torch.mm, torch.mv, torch.bmm, torch.addmm, torch.addbmm, torch.baddbmm, torch.einsum,
    _Tensor.matmul, _Tensor.__matmul__, _Tensor.mm, _Tensor.bmm,
}  # fmt: skip
_FLOAT = {
    F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.cross_entropy, F.nll_loss, F.mse_loss, F.l1_loss,
    F.smooth_l1_loss, F.softplus, F.normalize,
    torch.softmax, torch.log_softmax, torch.exp, torch.log, torch.pow, torch.rsqrt, torch.reciprocal,
    torch.cumsum, torch.prod, torch.norm,
    _Tensor.softmax, _Tensor.log_softmax, _Tensor.exp, _Tensor.log, _Tensor.pow, _Tensor.__pow__,
    _Tensor.rsqrt, _Tensor.reciprocal, _Tensor.cumsum, _Tensor.prod, _Tensor.norm,
}  # fmt: skip
"""What CUDA's autocast computes in bfloat16, and what in float32 (torch/docs/amp); of what policies call."""


class OnGpu(TorchFunctionMode):
    """A context manager for passes on the meta device.

    Args:
        autocast: Whether matrix products are computed in bfloat16, as `torch.autocast` does on a GPU.
        fused_norms: RMS norms keep their input alone, as on a GPU; a CPU keeps their pieces.
    """

    def __init__(self, autocast: bool, fused_norms: bool = True) -> None:
        super().__init__()
        self._autocast, self._fused_norms = autocast, fused_norms
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __exit__(self, *error: Any) -> None:
        """Drop the copies of weights: from here on they live where the backward pass needs them."""
        self._copies.clear()
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function as a GPU would."""
        kwargs = kwargs or {}
        if self._autocast and (func in _LOWER or func is F.scaled_dot_product_attention):
            args, kwargs = self._cast(args, torch.bfloat16), self._cast(kwargs, torch.bfloat16)
        elif self._autocast and func in _FLOAT:
            args, kwargs = self._cast(args, torch.float32), self._cast(kwargs, torch.float32)
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        if func is F.rms_norm and self._fused_norms:
            return _rms_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor):
            return self._cast_tensor(value, dtype)
        if isinstance(value, tuple | list):
            return type(value)(self._cast(one, dtype) for one in value)
        if isinstance(value, dict):
            return {name: self._cast(one, dtype) for name, one in value.items()}
        return value

    def _cast_tensor(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.dtype in (dtype, torch.float64):
            return tensor
        if dtype is not torch.bfloat16 or not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(dtype)
        if id(tensor) not in self._copies:
            with torch.enable_grad():
                self._copies[id(tensor)] = (tensor, tensor.to(dtype))
        return self._copies[id(tensor)][1]


def recomputing(autocast: bool, fused_norms: bool = True) -> dict[str, Any]:
    """Return options of `torch.utils.checkpoint.checkpoint`, which recomputes when `OnGpu` has been left."""
    return {
        "use_reentrant": False,
        "context_fn": lambda: (nullcontext(), OnGpu(autocast, fused_norms)),
    }


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Keep queries, keys, values, result, mask and one number per query, as fused kernels do.

    The operator is the CPU's, which keeps the same and has shapes without values.
    """
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(
            attn_mask.logical_not(), -torch.inf
        )
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _rms_norm(
    input: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    return _RMSNorm.apply(input, weight)  # type: ignore[return-value]


class _RMSNorm(torch.autograd.Function):
    """What a fused RMS norm makes and keeps: its input, its gain and one number per row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        rows = x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
        ctx.save_for_backward(x, weight, rows)
        return torch.empty_like(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight, _ = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        return (
            torch.empty_like(x) if needs_x else None,
            torch.empty_like(weight) if needs_weight and weight is not None else None,
        )
