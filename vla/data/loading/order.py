"""Which samples an epoch holds, and in which order: pure functions of the seed and the epoch's number."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from vla.types import as_count, as_flag

_BATCHES = 2**31  # purpose of a random number, in place of another order's epoch: no run reaches it


class Epochs(Protocol):
    """Which samples an epoch holds, in which order; for orders other than each of them once."""

    @property
    def length(self) -> int:
        """Samples in every epoch."""
        ...

    def order(self, epoch: int) -> np.ndarray:
        """Return an epoch's samples as indices of the dataset, long `[length]`."""
        ...


class WholeDataset:
    """Every sample once per epoch, in a new order each time or in the dataset's order."""

    def __init__(self, length: int, seed: int, shuffle: bool = True) -> None:
        self.length, self.seed = as_count(length, "length", 0), as_count(seed, "seed", 0)
        self.shuffle = as_flag(shuffle, "shuffle")

    def order(self, epoch: int) -> np.ndarray:
        """Return an epoch's samples, long `[length]`."""
        if not self.shuffle:
            return np.arange(self.length)
        return np.random.default_rng([self.seed, epoch]).permutation(self.length)


class ByLength:
    """The epochs of another order, rearranged so that samples of similar length share a step.

    A batch is padded to its longest sample. Here every stretch of `window` steps is sorted by length (stably)
    and cut into steps again, and the steps are shuffled. So a sample moves by less than a window, the steps
    of a window are in random order, and an epoch's content is unchanged.

    All batches of one step are neighbours, because the processes that share it wait for the longest. How many
    processes share it does not matter: the order is that of the batches of one process.

    Args:
        epochs: The other order.
        lengths: Lengths of every sample of the dataset, `[samples]`.
        batch_size: Samples per batch.
        seed: Seed of the step shuffle.
        batches_per_step: Batches of all processes in one optimiser step.
        window: Steps that are sorted together.

    Raises:
        ConfigError: A size is not a positive whole number.
    """

    def __init__(
        self,
        epochs: Epochs,
        lengths: np.ndarray,
        batch_size: int,
        seed: int,
        *,
        batches_per_step: int = 1,
        window: int = 32,
    ) -> None:
        self.epochs, self.lengths, self.seed = epochs, np.asarray(lengths), as_count(seed, "seed", 0)
        self.batch_size = as_count(batch_size, "batch_size")
        self.batches_per_step = as_count(batches_per_step, "batches_per_step")
        self.window = as_count(window, "window")

    @property
    def length(self) -> int:
        """Samples in every epoch."""
        return self.epochs.length

    def order(self, epoch: int) -> np.ndarray:
        """Return an epoch's samples as indices of the dataset, long `[length]`."""
        order = self.epochs.order(epoch).copy()
        random = np.random.default_rng([self.seed, _BATCHES, epoch])
        for window in self._windows(epoch):
            chosen = order[window]
            steps = chosen[np.argsort(self.lengths[chosen], kind="stable")].reshape(-1, self._step)
            order[window] = random.permutation(steps).reshape(-1)
        return order

    @property
    def _step(self) -> int:
        """Samples of one step."""
        return self.batch_size * self.batches_per_step

    def _windows(self, epoch: int) -> Iterator[slice]:
        """Yield the stretches of an epoch that are sorted, each of whole steps.

        Batches continue from one epoch to the next, so a step may have begun in the epoch before. Its rest is
        not moved, and neither is an incomplete step at the end.
        """
        batches = self.length // self.batch_size
        begun = -epoch * batches % self.batches_per_step * self.batch_size
        end = begun + (batches * self.batch_size - begun) // self._step * self._step
        for start in range(begun, end, self.window * self._step):
            yield slice(start, min(start + self.window * self._step, end))
