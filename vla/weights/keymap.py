"""Tables of tensor names: ours, those of a published format, and how the values are laid out in between.

A table is data. It is read in both directions: from the names in a file to ours when loading, from ours to a
file's when writing. `{i}` in a name is the index of a layer. Where only our name has the
index, the stored array is a stack of layers on axis 0, of which our tensor is one entry.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from vla.errors import ShapeError

_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
_AXIS = re.compile(r"\(([^)]*)\)|(\S+)")


@dataclass(frozen=True)
class Layout:
    """How a stored array becomes our tensor: named axes, permuted and merged.

    `Layout("h d e -> (h e) d")` takes `[h, d, e]`, brings it into the order `h e d` and merges the first
    two axes. Values are never changed.

    Args:
        pattern: Names of the stored axes, an arrow, the same names in our order; brackets merge.
        pick: Take this entry of the first stored axis before anything else; the pattern does not name that
            axis.
    """

    pattern: str
    pick: int | None = None

    def __call__(self, stored: torch.Tensor) -> torch.Tensor:
        """Return our tensor; a view of `stored` where that is possible.

        Raises:
            ShapeError: The array does not have as many axes as the pattern names.
        """
        names, groups = self._parsed()
        if stored.ndim != len(names) + (self.pick is not None):
            raise ShapeError(f"{list(stored.shape)} does not fit '{self}'.")
        if self.pick is not None:
            if not self.pick < stored.shape[0]:
                raise ShapeError(f"{list(stored.shape)} has no entry {self.pick} on its first axis.")
            stored = stored[self.pick]
        permuted = stored.permute([names.index(name) for group in groups for name in group])
        sizes = dict(zip(names, stored.shape, strict=True))
        merged = []
        for group in groups:
            merged.append(1)
            for name in group:
                merged[-1] *= sizes[name]
        return permuted.reshape(merged)

    def shape(self, stored: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of our tensor for an array of the shape `stored`; raises as `__call__`."""
        return tuple(self(torch.empty(tuple(stored), device="meta")).shape)

    def _parsed(self) -> tuple[list[str], list[list[str]]]:
        left, _, right = self.pattern.partition("->")
        groups = [(match[1] or match[2]).split() for match in _AXIS.finditer(right)]
        names = left.split()
        assert sorted(names) == sorted(name for group in groups for name in group), self.pattern
        return names, groups

    def __str__(self) -> str:
        return self.pattern if self.pick is None else f"{self.pick} of n, {self.pattern}"


class KeyMapping(NamedTuple):
    """One row of a table.

    Attributes:
        ours: Our name, `{i}` for the layer.
        theirs: The stored name. Without `{i}` where ours has it: the layers are stacked on axis 0.
        layout: From the stored array (one entry of it, where stacked) to ours; None where both are the same.
    """

    ours: str
    theirs: str
    layout: Layout | None = None

    @property
    def is_stacked(self) -> bool:
        """Whether the stored array holds all layers."""
        return "{i}" in self.ours and "{i}" not in self.theirs


class KeyTable:
    """A table of names, looked up from either side.

    Several rows may share a stored name (one array that holds several of our tensors); the first row with
    one of our names is what is written, the others are further names under which it may be stored.

    Args:
        rules: The rows.
    """

    def __init__(self, rules: Iterable[KeyMapping]) -> None:
        self.rules = tuple(rules)
        self._by_theirs: dict[str, list[KeyMapping]] = defaultdict(list)
        self._by_ours: dict[str, list[KeyMapping]] = defaultdict(list)
        for rule in self.rules:
            self._by_theirs[rule.theirs].append(rule)
            self._by_ours[rule.ours].append(rule)

    def of_theirs(self, stored: str) -> list[tuple[KeyMapping, str | None]]:
        """Return the rows for a stored name, with its layer's index; empty for an unknown name."""
        pattern, index = split_index(stored)
        rules = self._by_theirs.get(stored) or self._by_theirs.get(pattern, [])
        return [(rule, index) for rule in rules]

    def of_ours(self, name: str) -> list[str]:
        """Return the stored names of one of our tensors, the one to write first; empty where it has none."""
        pattern, index = split_index(name)
        return [
            rule.theirs if index is None else rule.theirs.replace("{i}", index)
            for rule in self._by_ours.get(pattern, [])
        ]


def split_index(name: str) -> tuple[str, str | None]:
    """Split a name into its pattern and its layer's index: `("layers.{i}.norm", "3")`."""
    match = _INDEX.search(name)
    if match is None:
        return name, None
    return f"{name[: match.start()]}{{i}}{name[match.end() :]}", match[0]


class Spelling(NamedTuple):
    """A rewriting of names that brings several generations of a format to one spelling."""

    pattern: str
    replacement: str


def respell(name: str, spellings: Iterable[Spelling]) -> str:
    """Return `name` after every rewriting, in order."""
    for spelling in spellings:
        name = re.sub(spelling.pattern, spelling.replacement, name)
    return name


def with_prefix(rules: Iterable[KeyMapping], ours: str, theirs: str) -> Iterator[KeyMapping]:
    """Put prefixes before both names of every row."""
    for rule in rules:
        yield KeyMapping(ours + rule.ours, theirs + rule.theirs, rule.layout)


def same(tails: Iterable[str]) -> Iterator[KeyMapping]:
    """Make rows of names that are the same on both sides."""
    for tail in tails:
        yield KeyMapping(tail, tail)
