"""Training and validation episodes: whole episodes, because frames of one episode resemble each other."""

from collections.abc import Iterable, Sequence

import numpy as np

from vla.data.notices import say_once
from vla.errors import ConfigError
from vla.types import as_count, as_counts, as_number

_MOST_EPISODES = 10**8  # their numbers are held in memory


def split_episodes(
    episodes: int | Sequence[int], validation_fraction: float, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Split episodes at random, the same way for the same seed.

    Args:
        episodes: Episode indices, or their number.
        validation_fraction: In [0, 1). Where it is above 0 and there are two or more episodes, both parts
            get at least one; a single episode is trained on, with a warning.
        seed: Seed of the split.

    Returns:
        Training and validation indices, each sorted; disjoint, and together all of them.

    Raises:
        ConfigError: The fraction is outside [0, 1), the episodes are none or not different whole
            numbers, or their number is not in [1, 10^8].
    """
    validation_fraction = as_number(validation_fraction, "validation_fraction")
    if not 0 <= validation_fraction < 1:
        raise ConfigError(f"validation_fraction must be in [0, 1), got {validation_fraction}.")
    if isinstance(episodes, Iterable) and getattr(episodes, "ndim", 1):
        ids = as_counts(episodes, "episodes")
    elif hasattr(episodes, "episodes"):
        raise ConfigError(
            f"episodes are their numbers, or how many there are, got a {type(episodes).__name__}: of a "
            "dataset give [episode.index for episode in dataset.episodes]."
        )
    else:
        number = as_count(episodes, "The number of episodes")
        if number > _MOST_EPISODES:
            raise ConfigError(f"The number of episodes must be at most {_MOST_EPISODES}, got {number}.")
        ids = list(range(number))
    if not ids:
        raise ConfigError("There are no episodes to split: episodes is empty.")
    if len(set(ids)) < len(ids):
        raise ConfigError(f"Some episodes are listed twice: {sorted(ids)}.")
    count = round(validation_fraction * len(ids))
    if validation_fraction > 0 and len(ids) == 1:
        count = 0
        say_once(
            f"There is one episode, number {ids[0]}, and a share of {validation_fraction:g} is to be held "
            "out: it is trained on, and nothing is validated."
        )
    if validation_fraction > 0 and len(ids) >= 2:
        count = min(max(count, 1), len(ids) - 1)
    order = np.random.default_rng(as_count(seed, "seed", at_least=0)).permutation(len(ids)).tolist()
    chosen = set(order[:count])
    validation = [index for place, index in enumerate(ids) if place in chosen]
    return sorted(index for place, index in enumerate(ids) if place not in chosen), sorted(validation)
