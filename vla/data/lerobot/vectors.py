"""Numbers of a dataset's rows as its items show them: vectors, times since an episode's start."""

from collections.abc import Sequence

import numpy as np

from vla.errors import DatasetError


def locked(values: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written to: what it shows are the dataset's items."""
    view = values.view()
    view.flags.writeable = False
    return view


def as_vectors(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Join columns of the rows to float32 vectors `[n, d]`.

    Raises:
        DatasetError: A value is too large for float32.
    """
    with np.errstate(over="ignore"):
        parts = [values.reshape(len(values), -1).astype(np.float32, copy=False) for values in columns]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    if not np.isfinite(joined).all():  # finite as float64, as columns are checked when they are read
        row, dimension = np.argwhere(~np.isfinite(joined))[0].tolist()
        raise DatasetError(
            f"The state or an action is too large for float32: frame {row} of the selected episodes, "
            f"dimension {dimension}."
        )
    return joined


def frame_times(timestamps: np.ndarray, frame_index: np.ndarray, fps: float) -> np.ndarray:
    """Return float64 times since the episode's start.

    Timestamps are stored as float32, which after an hour is off by more than the video tolerance. Where
    one is frame_index / fps up to that rounding, the exact quotient is taken instead.
    """
    exact = frame_index / fps
    rounding = np.spacing(np.maximum(np.abs(exact), 1).astype(np.float32)).astype(np.float64)
    return np.where(np.abs(timestamps - exact) <= 2 * rounding, exact, timestamps.astype(np.float64))
