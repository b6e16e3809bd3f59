"""Grouped-query attention on PyTorch's fused kernel, and the key/value cache that suffixes read.

Letters: b batch, t query token, s key token, h query head, k key/value head, e head dimension.
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
        mask: bool `[b, t, s]`, True where a query attends to a key; None: every query attends to every key,
            which keeps the fastest kernels available.

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
    """Keys and values of earlier tokens per layer, which later tokens read; never edited in place.

    Attributes:
        layers: `(keys, values)` of each layer, `[b, k, s, e]`.
        visible_bs: bool `[b, s]`, True where later tokens may attend; None: everywhere.
        next_position_b: long `[b]`, the rotary position of the next token. Padding has consumed none.
    """

    layers: tuple[LayerKeysValues, ...]
    visible_bs: torch.Tensor | None
    next_position_b: torch.Tensor

    @property
    def length(self) -> int:
        """Number of cached tokens, padding included."""
        return self.layers[0][0].shape[2]

    def append(
        self, layers: tuple[LayerKeysValues, ...], valid_bt: torch.Tensor | None = None
    ) -> "KeyValueCache":
        """Return the cache with `t` more tokens at the next positions.

        Args:
            layers: Keys and values of the new tokens, `[b, k, t, e]`.
            valid_bt: bool `[b, t]`, False for padding; None when every new token is real.
        """
        joined = tuple(
            (torch.cat([k, new_k], dim=2), torch.cat([v, new_v], dim=2))
            for (k, v), (new_k, new_v) in zip(self.layers, layers, strict=True)
        )
        batch, _, added, _ = layers[0][0].shape
        device = self.next_position_b.device
        new = torch.ones(batch, added, dtype=torch.bool, device=device) if valid_bt is None else valid_bt
        visible = self.visible_bs
        if visible is None and valid_bt is not None:
            visible = torch.ones(batch, self.length, dtype=torch.bool, device=device)
        if visible is not None:
            visible = torch.cat([visible, new], dim=1)
        return KeyValueCache(joined, visible, self.next_position_b + new.sum(dim=1))

    def mask_for(self, num_queries: int, new_mask: torch.Tensor | None = None) -> torch.Tensor | None:
        """Return the mask `[b, t, s + t]` of `t` new tokens, or None where each attends to everything.

        Args:
            num_queries: `t`.
            new_mask: bool `[t, t]` or `[b, t, t]`, True where a new token attends to another; None:
                everywhere.
        """
        if self.visible_bs is None and new_mask is None:
            return None
        batch, device = self.next_position_b.shape[0], self.next_position_b.device
        if self.visible_bs is None:
            past = torch.ones(batch, num_queries, self.length, dtype=torch.bool, device=device)
        else:
            past = self.visible_bs[:, None, :].expand(-1, num_queries, -1)
        if new_mask is None:
            new_mask = torch.ones(num_queries, num_queries, dtype=torch.bool, device=device)
        return torch.cat([past, new_mask.expand(batch, -1, -1)], dim=2)

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
