"""Weights as inference wants them: matrices of one input joined, gains of norms folded in. Never saved.

Folding happens in float64 and is rounded once, to the weights' dtype.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vla.fast.kernels import Kernel, fastest, has_choice
from vla.fast.levels import FormError
from vla.nn.linear import linear


def weight_of(layer: nn.Module) -> torch.Tensor:
    """Return the matrix `[o, i]` that a linear layer multiplies by, a LoRA's update included.

    Raises:
        FormError: The layer is not a linear one, is quantised, or is adapted otherwise than by LoRA.
    """
    kind: Any = layer
    if hasattr(layer, "modules_to_save"):
        return weight_of(_trained_copy(kind))
    if hasattr(layer, "lora_A"):
        weight = weight_of(kind.get_base_layer())
        if kind.merged or kind.disable_adapters:
            return weight
        for name in kind.active_adapters:
            if name in kind.lora_A:
                if getattr(kind, "use_dora", {}).get(name):
                    raise FormError("Its adapter is a DoRA, which cannot be added to the weights: merge it.")
                if getattr(kind, "lora_bias", {}).get(name):
                    raise FormError("Its adapter has biases, which cannot be added to the weights: merge it.")
                weight = weight + kind.get_delta_weight(name).to(weight.dtype)
        return weight.detach()
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Linear) or weight is None or not weight.is_floating_point():
        raise FormError(
            f"It has a {type(layer).__name__}, whose weights are not a plain matrix (quantised, say)."
        )
    return weight.detach()


def _trained_copy(wrapper: Any) -> nn.Module:
    """Return the layer that `peft` calls where it keeps copies of it for adapters."""
    active = [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
    if wrapper.disable_adapters or not active:
        return wrapper.original_module
    if len(active) > 1:
        raise FormError(f"Several whole copies of one layer are active: {', '.join(active)}.")
    return wrapper.modules_to_save[active[0]]


def bias_of(layer: nn.Module) -> torch.Tensor | None:
    """Return the bias `[o]` of a linear layer, adapted or not; None without one."""
    kind: Any = layer
    if hasattr(layer, "modules_to_save"):
        return bias_of(_trained_copy(kind))
    bias = (kind.get_base_layer() if hasattr(layer, "get_base_layer") else kind).bias
    return None if bias is None else bias.detach()


MAX_LAYOUTS = 4
"""Numbers of rows for which a matrix may be laid out on a CPU: each layout may take its memory once more."""


class Product:
    """What several linear layers make of one input: one product with all their matrices, or one each.

    Args:
        layers: Linear layers of equal input; all with a bias, or none.
        fold: Whether to join the matrices. One by one they are the layers' own, and results agree to the
            bit.
        gain: `[i]`, what the input is multiplied by before; folded into the matrices.
        sign: What the result is multiplied by; folded as well.
    """

    def __init__(
        self, layers: Sequence[nn.Module], fold: bool, gain: torch.Tensor | None = None, sign: float = 1.0
    ) -> None:
        self.layers = tuple(layers)
        weights = [weight_of(layer) for layer in layers]
        biases = [bias_of(layer) for layer in layers]
        self._kernels: dict[int, Kernel] | None = None
        self.sizes = [weight.shape[0] for weight in weights]
        joined_bias = None if biases[0] is None else torch.cat([one for one in biases if one is not None])
        if not fold:
            if gain is not None or sign != 1.0:
                raise ValueError("A gain or sign is folded into the matrices, or applied by the caller.")
            self.weights, self.biases = weights, biases
            return
        joined = torch.cat(weights) if len(weights) > 1 else weights[0]
        if gain is not None or sign != 1.0:
            factor = sign if gain is None else sign * gain.double()
            joined = (joined.double() * factor).to(joined.dtype)
            joined_bias = None if joined_bias is None else (joined_bias.double() * sign).to(joined_bias.dtype)
        self.weights, self.biases = [joined], [joined_bias]
        self._kernels = {} if has_choice(joined) else None

    def __call__(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """Map `[..., i]` to one tensor `[..., o]` for each layer."""
        if self._kernels is not None and not torch.compiler.is_compiling() and not x.requires_grad:
            made = [self._fastest(x)(x)]
        else:
            made = [linear(x, weight, bias) for weight, bias in zip(self.weights, self.biases, strict=True)]
        return made if len(made) == len(self.sizes) else made[0].split(self.sizes, dim=-1)

    def _fastest(self, x: torch.Tensor) -> Kernel:
        assert self._kernels is not None
        rows = x.numel() // x.shape[-1]
        kernel = self._kernels.get(rows)
        if kernel is not None:
            return kernel
        if len(self._kernels) == MAX_LAYOUTS:
            return lambda x: linear(x, self.weights[0], self.biases[0])
        kernel = self._kernels[rows] = fastest(x, self.weights[0], self.biases[0])
        return kernel

    def one(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[..., i]` to `[..., o]`, where there is one layer."""
        (made,) = self(x)
        return made

    def tensors(self) -> list[torch.Tensor]:
        """Return the matrices and biases."""
        return [*self.weights, *(bias for bias in self.biases if bias is not None)]


def memory_of(tensors: Sequence[torch.Tensor], shared_with: nn.Module) -> int:
    """Return the bytes of tensors that are not a module's own."""
    own = {parameter.data_ptr() for parameter in shared_with.parameters()}
    return sum(one.numel() * one.element_size() for one in tensors if one.data_ptr() not in own)
