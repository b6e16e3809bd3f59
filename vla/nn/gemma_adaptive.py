"""Gemma's decoder with adaptive norms: pi-0.5's action expert (arXiv 2504.16054).

The flow's time enters every layer as a condition that scales, shifts and gates. A condition is the same
for all tokens of a chunk and depends on nothing else, so its modulations may be made beforehand: once for
a whole schedule of solver steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from vla.nn.attention import KeyValueCache, LayerKeysValues
from vla.nn.gemma import GemmaAttention, GemmaConfig, GemmaOutput, LayerStack
from vla.nn.mlp import GatedMLP
from vla.nn.norms import AdaptiveRMSNorm
from vla.nn.rope import Rotary


class LayerModulation(NamedTuple):
    """What the condition does to one layer: `[..., 3 d]` for its attention and for its MLP."""

    attention: torch.Tensor
    mlp: torch.Tensor


@dataclass(frozen=True)
class StackModulation:
    """What the condition does to a whole stack: one entry per layer, and `[..., 3 d]` for the last norm."""

    layers: tuple[LayerModulation, ...]
    norm: torch.Tensor

    def at(self, index: int) -> "StackModulation":
        """Return entry `index` of the leading axis, as `[1, 1, 3 d]` for every row and token."""
        layers = tuple(LayerModulation(*(part[index, None, None] for part in layer)) for layer in self.layers)
        return StackModulation(layers, self.norm[index, None, None])


class AdaptiveGemmaLayer(nn.Module):
    """Pre-norm attention and gated MLP, each on a gated residual."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.input_layernorm = AdaptiveRMSNorm(config.width, config.width, config.norm_eps)
        self.self_attn = GemmaAttention(config)
        self.post_attention_layernorm = AdaptiveRMSNorm(config.width, config.width, config.norm_eps)
        self.mlp = GatedMLP(config.width, config.mlp_dim)

    def forward(
        self,
        x_btd: torch.Tensor | None,
        rotary: Rotary | None,
        mask: torch.Tensor | None,
        past: LayerKeysValues | None,
        condition: torch.Tensor | LayerModulation,
    ) -> Any:
        """Return the next hidden states and the new keys and values.

        Without `x_btd`, return the condition's modulation alone. Both go through `forward`, so that hooks
        which gather sharded weights see either use.

        Args:
            x_btd: Hidden states `[b, t, d]`.
            rotary: Rotation for the tokens' positions.
            mask: bool `[b, t, s + t]`, or None where every token attends to every other.
            past: The layer's cached keys and values.
            condition: `[b, 1 or t, d]`, or the modulation made of it beforehand.
        """
        if isinstance(condition, torch.Tensor):
            condition = LayerModulation(
                self.input_layernorm.dense(condition), self.post_attention_layernorm.dense(condition)
            )
        if x_btd is None:
            return condition
        assert rotary is not None
        normed, gate = self.input_layernorm(x_btd, condition.attention)
        attended, keys_values = self.self_attn(normed, rotary, mask, past, False)
        x_btd = x_btd + gate * attended
        normed, gate = self.post_attention_layernorm(x_btd, condition.mlp)
        return x_btd + gate * self.mlp(normed), keys_values


class AdaptiveGemmaDecoder(LayerStack):
    """A stack of `AdaptiveGemmaLayer`s, for suffix tokens only: it has no token table."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(AdaptiveGemmaLayer(config) for _ in range(config.depth))
        self.norm = AdaptiveRMSNorm(config.width, config.width, config.norm_eps)

    def modulations(self, condition: torch.Tensor) -> StackModulation:
        """Return what a condition `[..., d]` does to every layer, to be given to `forward` in its place."""
        layers = tuple(layer(None, None, None, None, condition) for layer in self.layers)
        return StackModulation(layers, self.norm.dense(condition))

    def forward(
        self,
        x_btd: torch.Tensor,
        positions_bt: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
        *,
        condition: torch.Tensor | StackModulation,
    ) -> GemmaOutput:
        """Run the stack.

        Args:
            x_btd: Embedded tokens `[b, t, d]`.
            positions_bt: Rotary positions `[b, t]`.
            mask: bool `[b, t, s + t]` over cached and new tokens; None where every token attends to every
                other.
            cache: Keys and values of earlier tokens, `s` of them.
            condition: `[b, 1 or t, d]`, or the modulations made of it beforehand.
        """
        made = isinstance(condition, StackModulation)
        extras: Sequence[Any] = condition.layers if made else [condition] * self.config.depth
        x_btd, keys_values = self.run_layers(x_btd, positions_bt, mask, cache, extras)
        last = condition.norm if isinstance(condition, StackModulation) else self.norm.dense(condition)
        return GemmaOutput(self.norm(x_btd, last)[0], keys_values)
