"""Seeds that say what they are for, so that no generator's state has to be saved."""

import numpy as np

TRAINING_NOISE, TRAINING_LAYERS, VALIDATION_NOISE, INITIALISATION = range(4)
"""Streams that share a recipe's seed without sharing numbers."""


def derive_seed(*numbers: int) -> int:
    """Return a seed, in [0, 2^63), that any change of any number scatters (zeros at the end do not count)."""
    # As two words of 32 bits each: a number's own size must not run it into its neighbour.
    words = [word for number in numbers for word in (number & 0xFFFFFFFF, number >> 32)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
