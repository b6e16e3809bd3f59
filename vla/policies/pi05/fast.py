"""pi-0.5's expert without training; see `policies.flow.fast.program`."""

from collections.abc import Sequence
from typing import Any

import torch

from vla.fast.stack import Slots
from vla.fast.triton.forms import Ends, Given, Linear
from vla.fast.weights import Product
from vla.nn.gemma_adaptive import LayerModulation, StackModulation
from vla.nn.rope import Rotary
from vla.policies.flow.fast.program import Suffix


class Pi05Suffix(Suffix):
    """Actions as tokens; the time scales, shifts and gates every layer, as made beforehand.

    Args:
        model: The policy's network.
        fold: Whether to fold.
    """

    buckets = (32, 64, 128, 200)

    def __init__(self, model: Any, fold: bool) -> None:
        super().__init__(model, fold)
        self._model, self._fold = model, fold
        self._actions = Product([model.action_in_proj], False)
        self._out = Product([model.action_out_proj], fold, None, -1.0 if fold else 1.0)

    def products(self) -> list[Product]:
        """Return all products."""
        return [*self.stack.products(), self._actions, self._out]

    def tensors(self) -> list[torch.Tensor]:
        """Return all weights that it multiplies by."""
        return [tensor for product in self.products() for tensor in product.tensors()]

    def per_token(
        self, known_ba: torch.Tensor, clean: StackModulation, made: StackModulation
    ) -> StackModulation:
        """Return the modulations of each token, `[b, a, 3 d]`."""
        known = known_ba[..., None]
        layers = tuple(
            LayerModulation(*(torch.where(known, one, other) for one, other in zip(*pair, strict=True)))
            for pair in zip(clean.layers, made.layers, strict=True)
        )
        return StackModulation(layers, torch.where(known, clean.norm, made.norm))

    def tables(self, tau_n: torch.Tensor) -> Sequence[StackModulation]:
        """Return the modulations of all layers at each time."""
        made = self._model.modulations(tau_n)
        return [made.at(index) for index in range(len(tau_n))]

    def ends(self) -> Ends:
        """Return both projections."""
        (weight,), (bias,) = self._actions.weights, self._actions.biases
        return Ends((Linear(weight, bias),), Linear(self._out.weights[0], self._out.biases[0]))

    def given(self, made: StackModulation) -> Given:
        """Return the time's modulations."""
        return Given(None, made)

    def velocity(
        self,
        x_bam: torch.Tensor,
        made: StackModulation,
        rotary: Rotary,
        mask: torch.Tensor | None,
        slots: Slots,
        start: int,
    ) -> torch.Tensor:
        """Return the velocity, float32 `[b, a, m]`."""
        tokens = self._actions.one(x_bam.to(self._actions.weights[0].dtype))
        hidden = self.stack.run(tokens, rotary, mask, slots, start, made.layers)
        out = self._out.one(self.stack.norm(hidden, made.norm)[0]).float()
        return out if self._fold else -out
