"""A shuffle that touches few files at a time, for samples whose files are expensive to fetch.

A plain shuffle touches every file within the first few batches. Here the blocks of samples that share files
are put into a random order, and a window moves along it: batches mix the samples of the window's blocks,
and a block that leaves it has been read completely. It is still a permutation, new in each epoch, and a
function of the random numbers alone, so that resuming and sharing among processes work as usual.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """How far a shuffle reaches.

    Attributes:
        blocks: Number of the block that each sample is in, int64 `[n]`, counted from 0.
        size: Blocks whose samples are mixed with one another at any time, at least 1.
    """

    blocks: np.ndarray
    size: int

    def permutation(self, rng: np.random.Generator) -> np.ndarray:
        """Return the samples' indices, int64 `[n]`, in a random order.

        At no point are more than `size` blocks begun and unfinished.
        """
        count = int(self.blocks.max(initial=-1)) + 1
        size = min(self.size, count)
        place = rng.permutation(count)[self.blocks]
        # The window rests for a time unit, then advances by one block. So a block is in it from
        # `enters` to `leaves`, and each of its samples at a random moment between.
        enters = np.maximum(place - size + 1, 0)
        leaves = np.minimum(place, count - size) + 1
        return np.argsort(enters + (leaves - enters) * rng.random(len(place)), kind="stable")


class WindowedEpochs:
    """Every sample once per epoch, in a new order each time; for `ResumableLoader`'s `epochs`.

    Args:
        window: How far the shuffle reaches.
        seed: Seed of the shuffle.

    Attributes:
        length: Samples in an epoch.
    """

    def __init__(self, window: Window, seed: int) -> None:
        self.length = len(window.blocks)
        self._window, self._seed = window, seed

    def order(self, epoch: int) -> np.ndarray:
        """Return an epoch's samples, long `[length]`."""
        return self._window.permutation(np.random.default_rng([self._seed, epoch]))
