"""Which rows a sample is made of: pure index arithmetic.

A frame's window is a list of offsets from it. The chunk of frame g has the offsets 0, 1, ..., H-1; with a
past, a chunk may begin earlier, and states and images have offsets such as (-1, 0). Within an episode of
rows [start, stop), offsets that lie outside repeat its first or last row, and `is_pad` is True there:

    start=0, stop=5, offsets (0, 1, 2, 3):    g=1 -> 1 2 3 4, nothing padded
                                              g=3 -> 3 4 4 4, is_pad = F F T T
                     offsets (-2, -1, 0):     g=1 -> 0 0 1,   is_pad = T F F
"""

from collections.abc import Sequence

import numpy as np


def window(
    row: int, start: int, stop: int, offsets: np.ndarray | Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of one frame's window.

    Args:
        row: The frame's row, in [start, stop).
        start: The episode's first row.
        stop: One past the episode's last row.
        offsets: Steps from the frame, `[k]`.

    Returns:
        Row indices int64 `[k]` and `is_pad` bool `[k]`.
    """
    return _inside(row + np.asarray(offsets), start, stop)


def windows(
    first: int, last: int, start: int, stop: int, offsets: np.ndarray | Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows of the consecutive rows `[first, last)` of one episode `[start, stop)`.

    Returns:
        Row indices int64 `[n, k]` and `is_pad` bool `[n, k]`.
    """
    rows = np.arange(first, last)[:, None] + np.asarray(offsets)
    return _inside(rows, start, stop)


def _inside(rows: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    inside = np.maximum(np.minimum(rows, stop - 1), start)
    return inside, inside != rows
