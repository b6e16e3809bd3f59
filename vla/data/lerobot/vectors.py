"""Numbers of a dataset's rows as its items show them: vectors, times since an episode's start."""

from collections.abc import Callable, Mapping

import numpy as np

from vla.errors import DatasetError


def locked(values: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written to: what it shows are the dataset's items."""
    view = values.view()
    view.flags.writeable = False
    return view


def as_vectors(
    columns: Mapping[str, np.ndarray], where: Callable[[int], str] = "row {}".format
) -> np.ndarray:
    """Join columns of the rows to float32 vectors `[n, d]`.

    Args:
        columns: By key, in their order.
        where: Says where a row is, for the message.

    Raises:
        DatasetError: A value is too large for float32.
    """
    parts = []
    for key, values in columns.items():
        rows = values.reshape(len(values), -1)
        with np.errstate(over="ignore"):
            parts.append(rows.astype(np.float32, copy=False))
        if not np.isfinite(parts[-1]).all():  # finite as float64, as columns are checked when they are read
            row, dimension = np.argwhere(~np.isfinite(parts[-1]))[0].tolist()
            raise DatasetError(
                f"{where(row)}: dimension {dimension} of '{key}' is {rows[row, dimension]:.6g}, which is too "
                "large for float32. Repair or leave out this episode."
            )
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def frame_times(timestamps: np.ndarray, frame_index: np.ndarray, fps: float) -> np.ndarray:
    """Return float64 times since the episode's start.

    Timestamps are stored as float32, which after an hour is off by more than the video tolerance. Where
    one is frame_index / fps up to that rounding, the exact quotient is taken instead.
    """
    exact = frame_index / fps
    rounding = np.spacing(np.maximum(np.abs(exact), 1).astype(np.float32)).astype(np.float64)
    return np.where(np.abs(timestamps - exact) <= 2 * rounding, exact, timestamps.astype(np.float64))
