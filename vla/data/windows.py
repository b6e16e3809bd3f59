"""Which rows make up an action chunk: pure index arithmetic.

The chunk of frame g in an episode of rows [start, stop) is g, g+1, ..., g+H-1. Past the episode's end the
last row is repeated and `is_pad` is True:

    start=0, stop=5, H=4:   g=1 -> 1 2 3 4, nothing padded
                            g=3 -> 3 4 4 4, is_pad = F F T T
"""

import numpy as np


def window(row: int, stop: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of one chunk.

    Args:
        row: First row of the chunk, before `stop`.
        stop: One past the episode's last row.
        horizon: Steps in a chunk.

    Returns:
        Row indices int64 `[a]` and `is_pad` bool `[a]`.
    """
    rows = np.arange(row, row + horizon)
    return np.minimum(rows, stop - 1), rows >= stop


def windows(first: int, last: int, stop: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the chunks of the consecutive rows `[first, last)` of one episode that ends at `stop`.

    Returns:
        Row indices int64 `[n, a]` and `is_pad` bool `[n, a]`.
    """
    rows = np.arange(first, last)[:, None] + np.arange(horizon)
    return np.minimum(rows, stop - 1), rows >= stop
