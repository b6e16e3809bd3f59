"""Several datasets as one: their samples by weight, each through its own transform, in the same batches.

An epoch of a mixture ends where the first of its members has been seen once: it has as many draws as possible
in the shares that the weights ask for without repeating a frame. Members alternate at random within it. Over
the epochs each member goes through all of its frames before one repeats, so that a large one is seen once in
several epochs. All of this is a function of the seed and the epoch's number.

The members' control frequencies are unchanged: a chunk of H steps lasts H / fps seconds of its robot.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from vla.data.loading.file_order import Window
from vla.data.loading.loader import MapDataset, check_source, checked_sample
from vla.data.selection import whole_number
from vla.errors import ConfigError, DatasetError
from vla.types import Batch, as_count, as_number, as_text

MEMBER_KEY = "member"
"""Key of an item's member: its number in the mixture."""

_GOLDEN = (math.sqrt(5) - 1) / 2
_SHUFFLE, _WALK = 0, 1  # purpose of a random number


@dataclass(frozen=True)
class Member:
    """One dataset of a mixture.

    Attributes:
        name: Its name in messages and in a checkpoint.
        dataset: Map-style, such as `LeRobotDataset`.
        weight: Its share of the samples, relative to the other members' weights: of the dataset as a whole,
            however many frames it has.
        transform: Turns its items into the policy's tensors; see `ResumableLoader`.
        window: How far its frames are shuffled, where few files at a time are to be read.
    """

    name: str
    dataset: MapDataset
    weight: float
    transform: Callable[[dict[str, Any], torch.Generator | None], Batch]
    window: Window | None = None


class Mixture:
    """Map-style: the members' items one after another; `transform` gives each to its member's own transform.

    For a `ResumableLoader`, which needs all three: `ResumableLoader(mixture, mixture.transform, batch_size,
    seed, epochs=mixture.epochs(seed, batch_size))`. An item's "episode_index" becomes `"<name>/<index>"`, so
    that the origin of a batch is known.

    Args:
        members: In the order in which their frames are numbered.

    Raises:
        ConfigError: There are no members, two have one name, a weight is not a positive number, or a member's
            dataset or transform is not one.
        DatasetError: A member is empty, or the members' samples differ in their tensors or in the shapes of
            these. (One sample of each is made to find out.)
    """

    def __init__(self, members: Sequence[Member]) -> None:
        if not isinstance(members, Sequence) or not all(isinstance(member, Member) for member in members):
            raise ConfigError(f"A mixture is made of a list of Member, got {members!r}.")
        self.members = tuple(members)
        _check_members(self.members)
        self._ends = np.cumsum([len(member.dataset) for member in self.members])
        self._starts = [0, *self._ends.tolist()[:-1]]
        self._check_samples()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= (index := whole_number(index)) < len(self):
            raise IndexError(f"The mixture has {len(self)} frames, index {index} is outside.")
        number = int(np.searchsorted(self._ends, index, side="right"))
        member = self.members[number]
        item = member.dataset[index - self._starts[number]]
        return item | {MEMBER_KEY: number, "episode_index": f"{member.name}/{int(item['episode_index'])}"}

    def transform(self, item: dict[str, Any], generator: torch.Generator | None = None) -> Batch:
        """Return the tensors of an item of this mixture."""
        member = self.members[item[MEMBER_KEY]]
        return checked_sample(member.transform(item, generator), f"The transform of '{member.name}'")

    def epochs(self, seed: int, batch_size: int) -> "WeightedEpochs":
        """Return which frames each epoch holds, in which order, for batches of `batch_size`.

        Raises:
            ConfigError: The seed or the batch size is not a whole number, or too small.
            DatasetError: An epoch would be shorter than a batch.
        """
        return WeightedEpochs(
            [len(member.dataset) for member in self.members],
            [member.weight for member in self.members],
            seed,
            batch_size,
            names=[member.name for member in self.members],
            windows=[member.window for member in self.members],
        )

    def _check_samples(self) -> None:
        shapes = [_shapes(self.transform(self[start])) for start in self._starts]
        first, name = shapes[0], self.members[0].name
        for other, member in zip(shapes[1:], self.members[1:], strict=True):
            differing = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
            if differing:
                said = ", ".join(
                    f"'{key}' ({_shown(first.get(key))} in '{name}', {_shown(other.get(key))} in "
                    f"'{member.name}')"
                    for key in differing
                )
                raise DatasetError(
                    f"The samples of a mixture's members must be of the same form to share a batch; what "
                    f"differs: {said}."
                )


class WeightedEpochs:
    """Which draws make up an epoch of a mixture, by number of frame: a pure function of seed and epoch.

    Each member has one fixed random order of its frames, which it repeats, and an epoch takes a stretch of it
    no longer than one repetition: so no frame occurs twice in an epoch, and every one once per repetition.
    The epoch's draws are then shuffled; where a member has a window, only the sequence of members is, so that
    each keeps the order of its walk. Where a member's share is not a whole number of draws, it is rounded
    down or up, so that the mean over the epochs is the share.

    Args:
        lengths: Frames of each member.
        weights: Weights of each member, positive.
        seed: Seed of all shuffles.
        batch_size: An epoch is a multiple of it.
        names: Names of the members, for messages.
        windows: Shuffle window of each member; None shuffles all of a member's frames at once.

    Attributes:
        length: Draws in an epoch.

    Raises:
        DatasetError: An epoch would be shorter than a batch.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        seed: int,
        batch_size: int,
        names: Sequence[str],
        windows: Sequence[Window | None] = (),
    ) -> None:
        seed, batch_size = as_count(seed, "seed", at_least=0), as_count(batch_size, "batch_size")
        weights = [as_number(weight, "The weight of a mixture's member") for weight in weights]
        total = sum(map(Fraction, weights))
        shares = [Fraction(weight) / total for weight in weights]  # exact, so that their sum is 1
        rounds = [length / share for length, share in zip(lengths, shares, strict=True)]
        whole = min(rounds)
        self.length = int(whole) // batch_size * batch_size
        if self.length == 0:
            first = rounds.index(whole)
            raise DatasetError(
                f"An epoch of the mixture has {int(whole)} draws, after which '{names[first]}' "
                f"({lengths[first]} frames, {float(shares[first]):.3g} of the weight) would repeat itself; "
                f"that is fewer than a batch of {batch_size}: choose a smaller batch, or give it less "
                "weight."
            )
        self._lengths, self._seed = tuple(lengths), seed
        self._starts = np.cumsum([0, *lengths[:-1]])
        draws = [self.length * share for share in shares]
        self._whole_draws = np.array([int(draw) for draw in draws])
        # The members' fractions of a draw, end to end on a line from 0 to a whole number. The points
        # k + offset, for whole k, say which members get one draw more.
        edges = [Fraction(0)]
        for draw in draws:
            edges.append(edges[-1] + draw % 1)
        self._edges = [float(edge) for edge in edges]
        windows = windows or [None] * len(lengths)
        self._keeps_walks = any(window is not None for window in windows)
        self._walks = [
            _walk(np.random.default_rng([seed, _WALK, number]), length, window)
            for number, (length, window) in enumerate(zip(lengths, windows, strict=True))
        ]
        self._position = (0, np.zeros(len(lengths), dtype=np.int64))

    def order(self, epoch: int) -> np.ndarray:
        """Return the frames of an epoch, long `[length]`, in the order in which they are drawn."""
        before, counts = self.drawn_before(epoch), self.counts(epoch)
        self._position = (epoch + 1, before + counts)
        drawn = [
            start + walk[np.arange(first, first + count) % len(walk)]
            for start, walk, first, count in zip(self._starts, self._walks, before, counts, strict=True)
        ]
        rng = np.random.default_rng([self._seed, _SHUFFLE, epoch])
        if not self._keeps_walks:
            return rng.permutation(np.concatenate(drawn))
        turns = rng.permutation(np.repeat(np.arange(len(drawn)), counts))
        order = np.empty(len(turns), dtype=np.int64)
        for number, frames in enumerate(drawn):
            order[turns == number] = frames
        return order

    def counts(self, epoch: int) -> np.ndarray:
        """Return how many draws of an epoch each member gets, long `[members]`."""
        return self._whole_draws + self._extras(epoch, epoch + 1)

    def drawn_before(self, epoch: int) -> np.ndarray:
        """Return how many draws each member has had before an epoch, long `[members]`."""
        known, drawn = self._position
        if known > epoch:
            known, drawn = 0, np.zeros_like(drawn)
        return drawn + (epoch - known) * self._whole_draws + self._extras(known, epoch)

    def _extras(self, first: int, last: int) -> np.ndarray:
        """Return how often each member got one draw more in the epochs from `first` up to `last`."""
        # Multiples of the golden ratio are spread more evenly than random numbers.
        offsets = (np.arange(first, last) * _GOLDEN) % 1.0
        below = [int(np.ceil(edge - offsets).sum()) for edge in self._edges]
        return np.array([high - low for low, high in pairwise(below)])


def _walk(rng: np.random.Generator, length: int, window: Window | None) -> np.ndarray:
    return rng.permutation(length) if window is None else window.permutation(rng)


def _check_members(members: Sequence[Member]) -> None:
    if not members:
        raise ConfigError("A mixture needs at least one dataset.")
    names = [as_text(member.name, "The name of a mixture's member") for member in members]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Two members of the mixture are called {twice}: give each its own name.")
    for member in members:
        if as_number(member.weight, f"The weight of '{member.name}' in the mixture") <= 0:
            raise ConfigError(
                f"The weight of '{member.name}' in the mixture must be positive, got {member.weight!r}; "
                "leave a dataset out that is not to be used."
            )
        check_source(member.dataset, member.transform, f"'{member.name}', a member of the mixture,")
        if len(member.dataset) == 0:
            raise DatasetError(f"'{member.name}', a member of the mixture, has no frames.")


def _shapes(sample: Batch) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in sample.items() if isinstance(value, torch.Tensor)}


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
