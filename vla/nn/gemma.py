"""Gemma's decoder (Gemma Team, 2024), as prefix and as expert.

One stack of layers serves both weight sets of a pi-0-style policy. A pass may read the keys and values
of earlier tokens from a cache, and returns those of its own tokens; the mask comes from outside (see
`nn.masks`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vla.nn.attention import KeyValueCache, LayerKeysValues, attend
from vla.nn.embeddings import TiedEmbedding
from vla.nn.linear import Linear
from vla.nn.mlp import GatedMLP
from vla.nn.norms import RMSNorm
from vla.nn.rope import Rotary, rotary_angles, rotate


@dataclass(frozen=True, kw_only=True)
class GemmaConfig:
    """Sizes of one stack. Two stacks that share attention share all but `width` and `mlp_dim`."""

    width: int
    mlp_dim: int
    depth: int = 18
    num_heads: int = 8
    num_kv_heads: int = 1
    head_dim: int = 256
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6


class GemmaOutput(NamedTuple):
    """The normalised last hidden states, unless skipped, and every layer's new keys and values."""

    hidden: torch.Tensor | None
    keys_values: tuple[LayerKeysValues, ...]


class GemmaAttention(nn.Module):
    """Multi-query attention over the cached and the new tokens."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        inner, inner_kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.width, inner, bias=False)
        self.k_proj = Linear(config.width, inner_kv, bias=False)
        self.v_proj = Linear(config.width, inner_kv, bias=False)
        self.o_proj = Linear(inner, config.width, bias=False)

    def _heads(self, x_bti: torch.Tensor) -> torch.Tensor:
        return x_bti.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        x_btd: torch.Tensor,
        rotary: Rotary,
        mask: torch.Tensor | None,
        past: LayerKeysValues | None,
        keys_values_only: bool,
    ) -> tuple[torch.Tensor | None, LayerKeysValues]:
        """Return the attended `[b, t, d]` (None with `keys_values_only`), and the new keys and values."""
        k_bkte = rotate(self._heads(self.k_proj(x_btd)), rotary)
        v_bkte = self._heads(self.v_proj(x_btd))
        if keys_values_only:
            return None, (k_bkte, v_bkte)
        q_bhte = rotate(self._heads(self.q_proj(x_btd)), rotary)
        keys, values = k_bkte, v_bkte
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        return self.o_proj(attend(q_bhte, keys, values, mask)), (k_bkte, v_bkte)


class GemmaLayer(nn.Module):
    """Pre-norm attention and gated MLP, each on a residual."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = GemmaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = GatedMLP(config.width, config.mlp_dim)

    def forward(
        self,
        x_btd: torch.Tensor,
        rotary: Rotary,
        mask: torch.Tensor | None = None,
        past: LayerKeysValues | None = None,
        keys_values_only: bool = False,
    ) -> tuple[torch.Tensor, LayerKeysValues]:
        """Return the next hidden states (unchanged with `keys_values_only`) and the new keys and values."""
        attended, keys_values = self.self_attn(
            self.input_layernorm(x_btd), rotary, mask, past, keys_values_only
        )
        if attended is None:
            return x_btd, keys_values
        x_btd = x_btd + attended
        return x_btd + self.mlp(self.post_attention_layernorm(x_btd)), keys_values


class LayerStack(nn.Module):
    """Layers that share attention with a cache, each called exactly once per pass; subclasses make them."""

    layers: nn.ModuleList

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        # Set by `Policy.activation_checkpointing_enable`: whether, and every how many layers.
        self.gradient_checkpointing, self.checkpoint_every = False, 1
        self._gradient_checkpointing_func: Callable[..., Any] = checkpoint

    def run_layers(
        self,
        x_btd: torch.Tensor,
        positions_bt: torch.Tensor,
        mask: torch.Tensor | None,
        cache: KeyValueCache | None,
        extras: Sequence[Any],
    ) -> tuple[torch.Tensor, tuple[LayerKeysValues, ...]]:
        """Return the last hidden states and every layer's new keys and values; `extras` has one per layer."""
        rotary = rotary_angles(positions_bt, self.config.head_dim, self.config.rope_theta)
        keys_values = []
        for index, (layer, extra) in enumerate(zip(self.layers, extras, strict=True)):
            past = None if cache is None else cache.layers[index]
            arguments = (x_btd, rotary, mask, past, extra)
            chosen = self.gradient_checkpointing and index % self.checkpoint_every == 0
            if chosen and self.training and torch.is_grad_enabled():
                x_btd, new = self._gradient_checkpointing_func(layer, *arguments, use_reentrant=False)
            else:
                x_btd, new = layer(*arguments)
            keys_values.append(new)
        return x_btd, tuple(keys_values)


class GemmaDecoder(LayerStack):
    """A stack of `GemmaLayer`s; with a token table where it reads text."""

    def __init__(self, config: GemmaConfig, vocab_size: int | None = None) -> None:
        super().__init__(config)
        self.embed_tokens = None if vocab_size is None else TiedEmbedding(vocab_size, config.width)
        self.layers = nn.ModuleList(GemmaLayer(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(
        self,
        x_btd: torch.Tensor,
        positions_bt: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
        keys_values_only: bool = False,
    ) -> GemmaOutput:
        """Run the stack.

        Args:
            x_btd: Embedded tokens `[b, t, d]`.
            positions_bt: Rotary positions `[b, t]`.
            mask: bool `[b, t, s + t]` over cached and new tokens; None where every token attends to every
                other.
            cache: Keys and values of earlier tokens, `s` of them.
            keys_values_only: Leave out what only the hidden states need: the last layer's queries,
                attention and MLP, and the final norm.
        """
        skip = [False] * (self.config.depth - 1) + [keys_values_only]
        x_btd, keys_values = self.run_layers(x_btd, positions_bt, mask, cache, skip)
        return GemmaOutput(None if keys_values_only else self.norm(x_btd), keys_values)
