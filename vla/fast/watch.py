"""Whether weights are still those that a form was made of."""

from typing import Any

import torch
from torch import nn

from vla.fast.levels import FormError

PROBED = 4
"""Values of each tensor that are compared."""


class WeightsWatch:
    """Notices that a module's weights were changed or replaced since.

    PyTorch counts most changes in place, but neither those of fused optimisers nor those through `.data`. So
    some values of every tensor are compared as well: what moves whole tensors is seen (an optimiser, an
    average, a copy), a single value that is set through `.data` may not be. What decides how adapters are
    folded, and hooks, which a form does not run, are compared as well.

    Args:
        module: The module that a form was made of.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._record()

    def _record(self) -> None:
        modules = list(self._module.modules())
        # Walking the tree anew takes longer than all the rest.
        self._children = [(one._modules, tuple(one._modules.values())) for one in modules]
        self._owners = [one._parameters for one in modules if one._parameters]
        self._hooks = [hooks for one in modules for hooks in (one._forward_hooks, one._forward_pre_hooks)]
        self._attributes = [vars(one) for one in modules]
        self._adapters = [
            one for one in modules if "lora_A" in one._modules or "modules_to_save" in one._modules
        ]
        self._counted, self._hooked, self._adapted = (
            self._count(),
            self._count_hooks(),
            self._adapter_states(),
        )
        self._probes = self._probe()
        self._sampled = self._sample()

    def changed(self) -> bool:
        """Return whether any weight differs from when this was made, or from the last call.

        So does it where an adapter was switched or scaled, or a hook added or removed.
        """
        if (
            any(tuple(now.values()) != then for now, then in self._children)
            or self._count() != self._counted
            or self._count_hooks() != self._hooked
            or self._adapter_states() != self._adapted
        ):
            self._record()
            return True
        before, self._sampled = self._sampled, self._sample()
        return self._sampled != before

    def _count(self) -> list[tuple[int, int]]:
        return [
            (one.data_ptr(), 0 if one.is_inference() else one._version)
            for owner in self._owners
            for one in owner.values()
            if one is not None
        ]

    def _count_hooks(self) -> tuple[int, int]:
        return sum(map(len, self._hooks)), sum("forward" in one for one in self._attributes)

    def _adapter_states(self) -> list[tuple[Any, ...]]:
        return [adapter_state(one) for one in self._adapters]

    def _probe(self) -> list[list[torch.Tensor]]:
        """Return a few values in the middle of every tensor, as views of it, by dtype and device."""
        groups: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        for parameter in self._module.parameters():
            if parameter.is_meta:  # released, or elsewhere
                continue
            tensor = parameter.detach()
            while tensor.ndim > 1:
                tensor = tensor[len(tensor) // 2]
            middle = max(0, tensor.numel() - PROBED) // 2
            groups.setdefault((tensor.dtype, tensor.device), []).append(
                tensor.reshape(-1)[middle : middle + PROBED]
            )
        return list(groups.values())

    def _sample(self) -> list[bytes]:
        """Return the bytes of the probes."""
        return [torch.cat(group).view(torch.uint8).cpu().numpy().tobytes() for group in self._probes]


def adapter_state(layer: Any) -> tuple[Any, ...]:
    """Return what `vla.fast.weights.weight_of` folds an adapted layer by, besides its tensors."""
    return (
        layer.disable_adapters,
        tuple(layer.active_adapters),
        bool(getattr(layer, "merged", False)),
        tuple(getattr(layer, "scaling", {}).items()),
    )


def check_hooks(module: nn.Module) -> None:
    """Raise `FormError` where layers do more than a form of them would: hooks, or a `forward` of their own.

    Args:
        module: Whose layers they are. Embeddings may have hooks: they run as they are.
    """
    for name, one in module.named_modules():
        if one is module or isinstance(one, nn.Embedding):
            continue
        added = [
            what
            for what, there in (
                ("a forward hook", one._forward_hooks),
                ("a forward pre-hook", one._forward_pre_hooks),
                ("a forward of its own", "forward" in vars(one)),
            )
            if there
        ]
        if added:
            raise FormError(
                f"Its module '{name}' ({type(one).__name__}) has {added[0]}, which the inference form, made "
                "of the weights alone, would not run: remove it, or sample at level 'plain'."
            )
