"""Keys and values next to those in slots, for a pass that a gradient goes back through."""

import torch

from vla.fast.stack import Slots


class AppendedSlots(Slots):
    """Slots whose later tokens are joined at each read: what is written in place, no gradient can pass.

    Args:
        slots: Where the earlier tokens lie; not written to.
        start: How many those are.
    """

    def __init__(self, slots: Slots, start: int) -> None:
        self.tensor = slots.tensor
        self._start = start
        self._written: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep keys and values `[b, k, t, e]` of a layer that lie behind the earlier tokens."""
        assert start == self._start
        self._written[layer] = (keys, values)

    def read(self, layer: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's first keys and values `[b, k, s, e]`."""
        earlier = super().read(layer, self._start)
        joined = [torch.cat(pair, dim=2) for pair in zip(earlier, self._written[layer], strict=True)]
        return joined[0][:, :, :length], joined[1][:, :, :length]
