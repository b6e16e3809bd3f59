"""PyTorch's counter of floating-point operations, with formulas for the kernels that it does not know.

Only products count (matrix products, attention, convolutions), a multiplication and an addition as two.
"""

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """Return a context manager that counts what runs inside it; `get_total_flops()` is the sum.

    It runs some operators as their pieces, whose last digits differ.
    """
    return FlopCounterMode(display=False, custom_mapping=_formulas())


class TrainingFlopCounter(TorchDispatchMode):
    """A context manager that counts forward and backward passes and changes no digit of them.

    `total` is the sum. It counts operators as autograd runs them, so it is not for `torch.inference_mode`.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._formulas = flop_counter().flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = self._formulas.get(getattr(func, "overloadpacket", func))
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def _formulas() -> dict[Any, Any]:
    """Return formulas, by operator, of kernels that PyTorch's counter does not know.

    Those of attention on a CPU, and on a GPU, where it refused fewer key heads than query heads before 2.12.
    """
    formulas: dict[Any, Any] = {}
    for kernel in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention"):
        formulas[getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")] = _attention
        formulas[getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_backward")] = _attention_backward
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        formulas[torch.ops.mkldnn._linear_pointwise] = _linear
    return formulas


def _linear(x: torch.Size, weight: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])


def _attention_backward(
    grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any
) -> int:
    # The scores once more, then the gradients of values, weights, queries and keys: five products for two.
    return _attention(query, key, value) * 5 // 2
