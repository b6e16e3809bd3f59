"""Attention masks from rules per token group.

The rules of each group of query tokens are written once:

    rules = AttentionRules(
        images={"images": "all", "prompt": "all"},
        prompt={"images": "all", "prompt": "all"},
        response={"images": "all", "prompt": "all", "response": "causal"},
        state={"images": "all", "prompt": "all", "state": "all"},
        actions={"images": "all", "prompt": "all", "state": "all", "actions": "same_segment"},
    )

and `rules.explain(images=2, prompt=2, response=2, state=1, actions=(2, 2))` draws the mask, a row per query:

               images prompt response state actions
    images     ##     ##     ..       .     ....
    images     ##     ##     ..       .     ....
    prompt     ##     ##     ..       .     ....
    prompt     ##     ##     ..       .     ....
    response   ##     ##     #.       .     ....
    response   ##     ##     ##       .     ....
    state      ##     ##     ..       #     ....
    actions    ##     ##     ..       #     ##..
    actions    ##     ##     ..       #     ##..
    actions    ##     ##     ..       #     ..##
    actions    ##     ##     ..       #     ..##
"""

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import torch

Attends = Literal["none", "all", "causal", "same_segment"]
"""What a query attends to in a group: nothing, everything, itself and what came before it, or its segment."""

_CHOICES: tuple[Attends, ...] = ("none", "all", "causal", "same_segment")


class Tokens(NamedTuple):
    """The tokens of one side of the mask.

    Attributes:
        group_bt: long `[b, t]`, the index of each token's group, from `AttentionRules.index`.
        valid_bt: bool `[b, t]`, False for padding, to which nothing attends; None without padding.
        segment_bt: long `[b, t]`, which of several equal parts of its group a token belongs to (one per
            noise draw); only read for "same_segment". None: all in one.
    """

    group_bt: torch.Tensor
    valid_bt: torch.Tensor | None = None
    segment_bt: torch.Tensor | None = None


class AttentionRules:
    """For every group of queries, what it attends to in each group of keys; nothing in those not named."""

    def __init__(self, **rules: Mapping[str, Attends]) -> None:
        self.names = tuple(rules)
        for query, row in rules.items():
            for key, attends in row.items():
                if key not in rules:
                    raise ValueError(f"Group '{query}' refers to '{key}', which is not one of {self.names}.")
                if attends not in _CHOICES:
                    raise ValueError(
                        f"Group '{query}' attends to '{key}' as '{attends}', not one of {_CHOICES}."
                    )
        self._rules = {query: dict(row) for query, row in rules.items()}

    def index(self, name: str) -> int:
        """Return the number by which `Tokens.group_bt` refers to a group."""
        return self.names.index(name)

    def mask(self, queries: Tokens, keys: Tokens, first_query: int = 0) -> torch.Tensor:
        """Return the mask, bool `[b, t, s]`, True where a query attends to a key.

        Args:
            queries: The `t` query tokens.
            keys: The `s` key tokens, in sequence order.
            first_query: Index among the keys of the first query, for "causal".
        """
        key_b1s = keys.group_bt[:, None, :]
        device = key_b1s.device

        def attends(choice: Attends) -> torch.Tensor:
            return (self._bits(choice, queries.group_bt)[:, :, None] >> key_b1s) & 1 == 1

        query_index = torch.arange(queries.group_bt.shape[1], device=device) + first_query
        key_index = torch.arange(keys.group_bt.shape[1], device=device)
        earlier_ts = key_index[None, :] <= query_index[:, None]
        same_segment = attends("same_segment")
        if queries.segment_bt is not None and keys.segment_bt is not None:
            same_segment = same_segment & (queries.segment_bt[:, :, None] == keys.segment_bt[:, None, :])
        seen = attends("all") | (attends("causal") & earlier_ts) | same_segment
        return seen if keys.valid_bt is None else seen & keys.valid_bt[:, None, :]

    def _bits(self, choice: Attends, group_bt: torch.Tensor) -> torch.Tensor:
        """Return which groups each query attends to by a choice, long `[b, t]`: bit `i` for group `i`."""
        # Of plain numbers: a table would be copied to the device at every call.
        bits_bt = torch.zeros_like(group_bt)
        for group, query in enumerate(self.names):
            bits = sum(1 << self.index(key) for key, is_ in self._rules[query].items() if is_ == choice)
            if bits:
                bits_bt = torch.where(group_bt == group, bits, bits_bt)
        return bits_bt

    def hides_nothing(self, queries: Collection[str], keys: Collection[str]) -> bool:
        """Return whether each of some groups attends to all of every one of some groups."""
        return all(self._rules[query].get(key) == "all" for query in queries for key in keys)

    def explain(self, **lengths: int | tuple[int, ...]) -> str:
        """Draw the mask of a sequence with `#` where the row's token attends to the column's.

        Args:
            **lengths: Tokens of each group in sequence order; a tuple gives the group's segments.
        """
        parts = {name: (size,) if isinstance(size, int) else size for name, size in lengths.items()}
        group = [self.index(name) for name, sizes in parts.items() for _ in range(sum(sizes))]
        segment = [i for sizes in parts.values() for i, size in enumerate(sizes) for _ in range(size)]
        tokens = Tokens(torch.tensor([group]), segment_bt=torch.tensor([segment]))
        seen = self.mask(tokens, tokens)[0]
        stem = max(len(name) for name in parts) + 3
        widths = [max(len(name), sum(sizes)) + 1 for name, sizes in parts.items()]
        header = " " * stem + "".join(name.ljust(w) for name, w in zip(parts, widths, strict=True))
        lines = [header.rstrip()]
        for row, query in enumerate(group):
            line, start = self.names[query].ljust(stem), 0
            for sizes, width in zip(parts.values(), widths, strict=True):
                cells = seen[row, start : start + sum(sizes)].tolist()
                line += "".join("#" if cell else "." for cell in cells).ljust(width)
                start += sum(sizes)
            lines.append(line.rstrip())
        return "\n".join(lines)
