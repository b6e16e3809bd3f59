"""Grouped-query attention on PyTorch's fused kernel, and the key/value cache that suffixes read.

Letters: b batch, t query token, s key token, h query head, k key/value head, e head width.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

LayerKeysValues = tuple[torch.Tensor, torch.Tensor]
"""Keys (already rotated) and values of one layer, each `[b, k, s, e]`."""


def attend(
    q_bhte: torch.Tensor, k_bkse: torch.Tensor, v_bkse: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Scaled dot-product attention; `h / k` query heads share each key/value head.

    Args:
        q_bhte: Queries `[b, h, t, e]`.
        k_bkse: Keys `[b, k, s, e]`.
        v_bkse: Values `[b, k, s, e]`.
        mask: bool `[b, t, s]`, True where a query sees a key; None lets every query see every key, which
            keeps the fastest kernels available.

    Returns:
        `[b, t, h * e]`, ready for the output projection.
    """
    if mask is not None:
        mask = mask[:, None]
    grouped = q_bhte.shape[1] != k_bkse.shape[1]
    out_bhte = F.scaled_dot_product_attention(q_bhte, k_bkse, v_bkse, attn_mask=mask, enable_gqa=grouped)
    return out_bhte.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class KeyValueCache:
    """What later tokens may read of earlier ones: keys and values per layer, never edited in place.

    Attributes:
        layers: `(keys, values)` of each layer, `[b, k, s, e]`.
        visible_bs: bool `[b, s]`, True where later tokens may look; None when all of them may.
        next_position_b: long `[b]`, the rotary position of the next token. Padding has consumed none.
    """

    layers: tuple[LayerKeysValues, ...]
    visible_bs: torch.Tensor | None
    next_position_b: torch.Tensor

    @property
    def length(self) -> int:
        """Number of cached tokens, padding included."""
        return self.layers[0][0].shape[2]

    def append(self, layers: tuple[LayerKeysValues, ...]) -> "KeyValueCache":
        """Return the cache with `t` more tokens, visible in every row, at the next positions."""
        joined = tuple(
            (torch.cat([k, new_k], dim=2), torch.cat([v, new_v], dim=2))
            for (k, v), (new_k, new_v) in zip(self.layers, layers, strict=True)
        )
        added = layers[0][0].shape[2]
        visible = self.visible_bs
        if visible is not None:
            visible = torch.cat([visible, visible.new_ones(visible.shape[0], added)], dim=1)
        return KeyValueCache(joined, visible, self.next_position_b + added)

    def repeat(self, n: int) -> "KeyValueCache":
        """Return the cache with every row repeated `n` times in a row: `n` samples of one observation."""
        if n == 1:
            return self
        visible = self.visible_bs
        return KeyValueCache(
            tuple((k.repeat_interleave(n, dim=0), v.repeat_interleave(n, dim=0)) for k, v in self.layers),
            None if visible is None else visible.repeat_interleave(n, dim=0),
            self.next_position_b.repeat_interleave(n, dim=0),
        )

    def detach(self) -> "KeyValueCache":
        """Return the cache cut off from the graph, so that no gradient reaches the prefix."""
        return replace(self, layers=tuple((k.detach(), v.detach()) for k, v in self.layers))
