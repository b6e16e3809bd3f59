"""pi-0's expert without training; see `policies.flow.fast.program`."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from vla.fast.stack import Slots
from vla.fast.triton.forms import Ends, Given, Linear
from vla.fast.weights import Product, bias_of, weight_of
from vla.nn.rope import Rotary
from vla.policies.flow.fast.program import Suffix
from vla.policies.flow.time import embed_time


class Pi0Suffix(Suffix):
    """State and actions as tokens, the time fused into the latter.

    Folded, the actions' projection is joined with their half of the time MLP, whose other half is a bias
    for each time: `W [P x + p; t] + b = (Wx P) x + (Wx p + Wt t + b)`.

    Args:
        model: The policy's network.
        fold: Whether to fold.
    """

    state_tokens = 1

    def __init__(self, model: Any, fold: bool) -> None:
        super().__init__(model, fold)
        self._config, self._fold = model.config, fold
        self._state, self._actions = (
            Product([one], False) for one in (model.state_proj, model.action_in_proj)
        )
        self._fuse = Product([model.action_time_mlp_in], False)
        self._mix = Product([model.action_time_mlp_out], False)
        self._out = Product([model.action_out_proj], fold, self.stack.norm.folded, -1.0 if fold else 1.0)
        self._dtype = weight_of(model.action_in_proj).dtype
        if fold:
            fused, projected = weight_of(model.action_time_mlp_in).double(), weight_of(model.action_in_proj)
            of_actions, self._of_time = fused.split(fused.shape[1] // 2, dim=1)
            self._of_time = self._of_time.clone()  # not a view of all of it
            self._embed = (of_actions @ projected.double()).to(self._dtype)
            self._constant = _bias(model.action_time_mlp_in) + of_actions @ _bias(model.action_in_proj)

    def products(self) -> list[Product]:
        """Return all products."""
        own = (self._state, self._actions, self._fuse, self._mix, self._out)
        return [*self.stack.products(), *own]

    def tensors(self) -> list[torch.Tensor]:
        """Return all weights that it multiplies by."""
        tensors = [tensor for product in self.products() for tensor in product.tensors()]
        return [*tensors, *([self._embed, self._of_time] if self._fold else [])]

    def per_token(self, known_ba: torch.Tensor, clean: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """Return one entry for each token, `[b, a, d]`."""
        return torch.where(known_ba[..., None], clean, made)

    def tables(self, tau_n: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the time's embedding `[d]`; folded, the bias that it amounts to."""
        config, width = self._config, self._mix.weights[0].shape[1]
        time = embed_time(tau_n, width, config.min_period, config.max_period, config.numerics)
        if not self._fold:
            return time.to(self._dtype).unbind()
        return (time.double() @ self._of_time.T + self._constant).to(self._dtype).unbind()

    def ends(self) -> Ends:
        """Return the embedding, the time a bias of its own, and the projection."""
        (mix,), (mix_bias,) = self._mix.weights, self._mix.biases
        assert mix_bias is not None
        embed = (Linear(self._embed, None, silu=True), Linear(mix, mix_bias))
        return Ends(embed, Linear(self._out.weights[0], self._out.biases[0]))

    def given(self, made: torch.Tensor) -> Given:
        """Return the time's bias."""
        return Given(made, None)

    def write_state(
        self, state_bm: torch.Tensor, rotary: Rotary, mask: torch.Tensor | None, slots: Slots, start: int
    ) -> None:
        """Write the state's keys and values."""
        token = self._state.one(state_bm.to(self._dtype))[:, None]
        self.stack.run(token, rotary, mask, slots, start, keys_values_only=True)

    def velocity(
        self,
        x_bam: torch.Tensor,
        made: torch.Tensor,
        rotary: Rotary,
        mask: torch.Tensor | None,
        slots: Slots,
        start: int,
    ) -> torch.Tensor:
        """Return the velocity, float32 `[b, a, m]`."""
        x = x_bam.to(self._dtype)
        if self._fold:
            whole = made.ndim == 1
            fused = F.linear(x, self._embed, made) if whole else F.linear(x, self._embed) + made
        else:
            embedded = self._actions.one(x)
            fused = self._fuse.one(torch.cat([embedded, made.expand_as(embedded)], dim=-1))
        hidden = self.stack.run(self._mix.one(F.silu(fused)), rotary, mask, slots, start)
        out = self._out.one(self.stack.norm(hidden)[0]).float()
        return out if self._fold else -out


def _bias(layer: Any) -> torch.Tensor:
    bias = bias_of(layer)
    return weight_of(layer).new_zeros(weight_of(layer).shape[0]).double() if bias is None else bias.double()
