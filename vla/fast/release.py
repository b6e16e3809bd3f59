"""One set of weights in memory: plain matrices are let go where joined or folded ones took their place."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from vla.errors import VlaError
from vla.fast.weights import Product


class ReleasedError(VlaError, RuntimeError):
    """A policy's plain weights are asked for after they were released."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"The policy's plain weights, which {what} needs, were released (release_plain=True): only its "
            "inference form acts now. Load the policy again without release_plain for anything else."
        )


def release(policy: nn.Module, products: Iterable[Product], keep: Sequence[torch.Tensor]) -> int:
    """Let go of the plain weights that a form holds joined or folded; returns their bytes.

    In their place stand tensors of the same shapes without values, on the device "meta". Whatever needs the
    values raises `ReleasedError` from then on: a pass through the layers, `state_dict`, `load_state_dict`,
    moving or converting the policy.

    Args:
        policy: Whose weights they are.
        products: All products of the form.
        keep: The form's tensors; plain weights that are among them stay.
    """
    kept = {tensor.untyped_storage().data_ptr() for tensor in keep}
    freed = 0
    for layer in {id(layer): layer for product in products for layer in product.layers}.values():
        freed += _let_go(layer, kept)
    policy.register_state_dict_pre_hook(_Refusal("saving"))
    policy.register_load_state_dict_pre_hook(_Refusal("loading into it"))
    policy._apply = _Refusal("moving or converting it")  # type: ignore[method-assign]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return freed


def is_released(policy: nn.Module) -> bool:
    """Return whether a policy's plain weights were released."""
    return "_apply" in vars(policy)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the memory that tensors lie in, each piece counted once."""
    pieces = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
        if not tensor.is_meta
    }
    return sum(pieces.values())


def _let_go(layer: nn.Module, kept: set[int]) -> int:
    """Replace a layer's parameters that are not kept, those of an adapter on it included."""
    freed = 0
    for module in layer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta or parameter.untyped_storage().data_ptr() in kept:
                continue
            freed += parameter.numel() * parameter.element_size()
            empty = torch.empty_like(parameter, device="meta")
            setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    if freed:
        layer.register_forward_pre_hook(_Refusal("a pass through its own layers"))
    return freed


class _Refusal:
    """Refuses to be called, and what it is part of to be copied."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __call__(self, *arguments: Any, **options: Any) -> None:
        raise ReleasedError(self._what)

    def __reduce__(self) -> tuple[Any, ...]:
        raise ReleasedError("copying or pickling")
