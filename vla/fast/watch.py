"""Whether weights are still those that a form was made of."""

import torch
from torch import nn

PROBED = 4
"""Values of each tensor that are compared."""


class WeightsWatch:
    """Notices that a module's weights were changed or replaced since.

    PyTorch counts most changes in place, but neither those of fused optimisers nor those through `.data`. So
    some values of every tensor are compared as well: what moves whole tensors is seen (an optimiser, an
    average, a copy), a single value that is set through `.data` may not be.

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
        self._counted = self._count()
        self._probes = self._probe()
        self._sampled = self._sample()

    def changed(self) -> bool:
        """Return whether any weight differs from when this was made, or from the last call."""
        if any(tuple(now.values()) != then for now, then in self._children) or self._count() != self._counted:
            self._record()
            return True
        before, self._sampled = self._sampled, self._sample()
        return self._sampled != before

    def _count(self) -> list[tuple[int, int]]:
        return [
            (one.data_ptr(), one._version)
            for owner in self._owners
            for one in owner.values()
            if one is not None
        ]

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
