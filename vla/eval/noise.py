"""Where the noise of rollouts comes from, if each chunk has its own: then an episode depends on no other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ChunkNoise:
    """Noise of its own for each chunk, from a seed that can travel to a server.

    With one source for all, an episode's noise depends on which others run next to it.

    Args:
        seed: Seed of all of it, at least 0.
        source: Makes of a chunk's seed what the policy takes: `torch.Generator(device).manual_seed` in
            process, `int` over the network.
    """

    seed: int
    source: Callable[[int], Any] = int

    def of(self, episode: int, step: int) -> Any:
        """Return the source of the noise of one chunk.

        Args:
            episode: The environment's seed.
            step: Control steps that the episode has had.
        """
        return self.source(chunk_seed(self.seed, episode, step))


def chunk_seed(seed: int, episode: int, step: int) -> int:
    """Return a chunk's seed, 0 to 2^53 - 1: a whole number that every coding carries exactly."""
    return int(np.random.SeedSequence([seed, episode, step]).generate_state(1, np.uint64)[0] >> np.uint64(11))
