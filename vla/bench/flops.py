"""Floating-point operations of a piece of work, counted as PyTorch runs it.

Only products count (matrix products, attention, convolutions), a multiplication and an addition as two.
"""

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vla.bench.timing import Work


def count_flops(work: Work) -> int:
    """Run `work` once and return its floating-point operations, backward passes included."""
    with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        work()
    return counter.get_total_flops()


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
