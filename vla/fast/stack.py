"""A Gemma stack without training: keys and values written in place, weights joined, norms folded.

Letters as in `nn.attention`: b batch, t query token, s key token, h query head, k key/value head, e head
dimension.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from vla.fast.weights import Product
from vla.nn.attention import attend
from vla.nn.gemma import GemmaConfig
from vla.nn.gemma_adaptive import LayerModulation
from vla.nn.norms import AdaptiveRMSNorm, RMSNorm
from vla.nn.rope import Rotary, rotate


class Slots:
    """Room for the keys and values of a whole sequence, of every layer: `[layers, 2, b, k, s, e]`.

    Args:
        config: The stack's sizes.
        batch: Rows.
        length: Tokens of the longest sequence.
        dtype: Dtype of keys and values.
        device: Where they lie.
    """

    def __init__(
        self, config: GemmaConfig, batch: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.depth, 2, batch, config.num_kv_heads, length, config.head_dim)
        self.tensor = torch.zeros(shape, dtype=dtype, device=device)

    def write(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put keys and values `[b, k, t, e]` of a layer behind `start`."""
        end = start + keys.shape[2]
        self.tensor[layer, 0, :, :, start:end].copy_(keys)
        self.tensor[layer, 1, :, :, start:end].copy_(values)

    def read(self, layer: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's first keys and values `[b, k, s, e]`, as views."""
        return self.tensor[layer, 0, :, :, :length], self.tensor[layer, 1, :, :, :length]


class Norm:
    """A root-mean-square norm; with its gain folded into the product that follows, the division alone.

    Args:
        norm: The module.
        fold: Whether the gain is folded.
    """

    def __init__(self, norm: RMSNorm | AdaptiveRMSNorm, fold: bool) -> None:
        self.eps = norm.eps
        self.adaptive = isinstance(norm, AdaptiveRMSNorm)
        gain = None if isinstance(norm, AdaptiveRMSNorm) else 1.0 + norm.weight.detach().float()
        self.folded = gain if fold else None
        self.gain = None if fold else gain

    def __call__(
        self, x: torch.Tensor, modulation: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return `[..., d]` normalised, and the gate of the residual branch where the norm is adaptive."""
        normed = F.rms_norm(x.float(), x.shape[-1:], self.gain, self.eps)
        if modulation is None:
            return normed.to(x.dtype), None
        scale, shift, gate = modulation.chunk(3, dim=-1)
        return (normed * (1.0 + scale.float()) + shift.float()).to(x.dtype), gate


class Layer:
    """One layer: attention and gated MLP, each on a residual, gated where the norm is adaptive.

    Args:
        layer: `GemmaLayer` or `AdaptiveGemmaLayer`.
        fold: Whether to join matrices and fold gains.
    """

    def __init__(self, layer: Any, fold: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim: int = attention.head_dim
        self.attention_norm = Norm(layer.input_layernorm, fold)
        self.mlp_norm = Norm(layer.post_attention_layernorm, fold)
        queries = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = Product(queries, fold, self.attention_norm.folded)
        self.out = Product([attention.o_proj], fold)
        self.gate_up = Product([mlp.gate_proj, mlp.up_proj], fold, self.mlp_norm.folded)
        self.down = Product([mlp.down_proj], fold)
        self.products = (self.qkv, self.out, self.gate_up, self.down)

    def tensors(self) -> list[torch.Tensor]:
        """Return its matrices."""
        return [tensor for product in self.products for tensor in product.tensors()]

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """Split `[b, t, i]` into `[b, i / e, t, e]`."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Stack:
    """The layers of a decoder, on slots.

    Args:
        decoder: `GemmaDecoder` or `AdaptiveGemmaDecoder`.
        fold: Whether to join matrices and fold gains into them: faster, and equal up to rounding. Without,
            results agree with the decoder's to the bit.
    """

    def __init__(self, decoder: Any, fold: bool) -> None:
        self.config: GemmaConfig = decoder.config
        self._attend = attend_by_rows if fold else attend
        self.layers = [Layer(layer, fold) for layer in decoder.layers]
        self.norm = Norm(decoder.norm, fold)

    def products(self) -> list[Product]:
        """Return all products."""
        return [product for layer in self.layers for product in layer.products]

    def tensors(self) -> list[torch.Tensor]:
        """Return all matrices."""
        return [tensor for layer in self.layers for tensor in layer.tensors()]

    def run(
        self,
        x_btd: torch.Tensor,
        rotary: Rotary,
        mask: torch.Tensor | None,
        slots: Slots,
        start: int,
        modulations: Sequence[LayerModulation] | None = None,
        *,
        keys_values_only: bool = False,
    ) -> torch.Tensor:
        """Write the tokens' keys and values behind `start`; return the hidden states before the last norm.

        Args:
            x_btd: Embedded tokens `[b, t, d]`.
            rotary: Rotation of their positions.
            mask: bool `[b, t, start + t]`; None: every token attends to every other.
            slots: Where the `start` tokens before them lie.
            start: How many those are.
            modulations: One for each layer, where norms are adaptive.
            keys_values_only: Leave out what the keys and values of the last layer do not need.
        """
        for index, layer in enumerate(self.layers):
            made = None if modulations is None else modulations[index]
            only = keys_values_only and index == len(self.layers) - 1
            x_btd = self._layer(index, layer, x_btd, rotary, mask, slots, start, made, only)
        return x_btd

    def _layer(
        self,
        index: int,
        layer: Layer,
        x: torch.Tensor,
        rotary: Rotary,
        mask: torch.Tensor | None,
        slots: Slots,
        start: int,
        modulation: LayerModulation | None,
        keys_values_only: bool,
    ) -> torch.Tensor:
        normed, gate = layer.attention_norm(x, None if modulation is None else modulation.attention)
        q, k, v = layer.qkv(normed)
        slots.write(index, start, rotate(layer.heads(k), rotary), layer.heads(v))
        if keys_values_only:
            return x
        keys, values = slots.read(index, start + x.shape[1])
        attended = layer.out.one(self._attend(rotate(layer.heads(q), rotary), keys, values, mask))
        x = x + (attended if gate is None else gate * attended)
        normed, gate = layer.mlp_norm(x, None if modulation is None else modulation.mlp)
        gates, ups = layer.gate_up(normed)
        fed = layer.down.one(F.gelu(gates, approximate="tanh") * ups)
        return x + (fed if gate is None else gate * fed)


def attend_by_rows(
    q_bhte: torch.Tensor, k_bkse: torch.Tensor, v_bkse: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Attention in which the query heads of one key/value head are rows of it, so that no key is repeated.

    Args:
        q_bhte: Queries `[b, h, t, e]`.
        k_bkse: Keys `[b, k, s, e]`.
        v_bkse: Values `[b, k, s, e]`.
        mask: bool `[b, t, s]`, or None.

    Returns:
        `[b, t, h * e]`.
    """
    batch, heads, tokens, width = q_bhte.shape
    groups = heads // k_bkse.shape[1]
    rows = q_bhte.reshape(batch, -1, groups * tokens, width)
    if mask is not None:
        mask = mask[:, None].repeat(1, 1, groups, 1)
    out = F.scaled_dot_product_attention(rows, k_bkse, v_bkse, attn_mask=mask)
    return out.reshape(batch, heads, tokens, width).transpose(1, 2).flatten(2)
