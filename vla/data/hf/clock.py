"""The times of a table's frames, and how many frames a second they say."""

from collections.abc import Sequence

import numpy as np

from vla.data.hf.columns import TableColumns
from vla.data.hf.options import ColumnNames
from vla.data.hf.order import TIMESTAMP_KEY, EpisodeRows, frame_numbers, scalar_column
from vla.errors import DatasetError

_RATES = 0.5, 1000  # frames a second that timestamps may say by themselves
_FINE = 1e-3  # seconds: rounding to no more than this is hardly what is wrong
_UNITS = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}


def timestamps(
    columns: TableColumns, key: str | None, rows: np.ndarray, spans: Sequence[slice]
) -> np.ndarray | None:
    """Return seconds since each episode's start; None where the table has no timestamps.

    Args:
        columns: The table's columns.
        key: The one that was named; None takes `timestamp` where there is one.
        rows: The rows of all episodes, one after the other.
        spans: Each episode's rows among them.

    Raises:
        DatasetError: The column holds something else than one finite number a row, or its type is too coarse
            for seconds since a moment so long ago.
    """
    if key is None and (
        TIMESTAMP_KEY not in columns.features or not columns.features[TIMESTAMP_KEY].is_numeric
    ):
        return None
    named = key or TIMESTAMP_KEY
    columns.check_there(named, "the timestamps (data.columns.timestamp, --column)")
    what = f"{columns.table.name}: the column '{named}' cannot be the timestamps"
    stamps = scalar_column(columns, named, what, rows)
    if stamps.dtype.kind != "f":
        stamps = stamps.astype(np.float64)
    _check_grain(stamps, spans, np.dtype(columns.features[named].dtype), what)
    return np.concatenate([stamps[span] - stamps[span.start] for span in spans])


def _check_grain(stamps: np.ndarray, spans: Sequence[slice], stored: np.dtype, what: str) -> None:
    """Raise where times were rounded to steps that are about as long as a frame, or longer."""
    if stored.kind != "f" or stored.itemsize >= 8:
        return
    for span in spans:
        part = stamps[span]
        largest = np.abs(part).max().astype(stored)
        grain = float(np.spacing(largest))
        period = (float(part[-1]) - float(part[0])) / max(len(part) - 1, 1)
        if len(part) > 1 and grain > _FINE and 2 * grain > period >= 0:
            raise DatasetError(
                f"{what}: its type {stored} rounds {float(largest):.10g} s to steps of {grain:.3g} s. "
                "Write the column as float64, or count the seconds from each episode's start."
            )


def seconds_cut_off(
    columns: TableColumns, names: ColumnNames, episodes: Sequence[EpisodeRows], fps: float, timed: bool
) -> np.ndarray:
    """Return how much of each episode is missing before its first row, in seconds, `[e]`.

    A table may hold episodes without their first frames, `Dataset.filter(...)`, next to videos that have
    them. Numbers of frames say so, together with timestamps that began at 0 with the recording. Numbers that
    begin at 1 in every episode, or count through all of them, do not.

    Args:
        columns: The table's columns.
        names: Those of frames and timestamps.
        episodes: All episodes.
        fps: Frames per second.
        timed: Whether the table has timestamps.
    """
    nothing = np.zeros(len(episodes))
    numbers = frame_numbers(columns, names)
    if numbers is None:
        return nothing
    firsts = np.array([episode.rows[0] for episode in episodes])
    skipped = numbers[firsts]
    if timed:
        key = names.timestamp or TIMESTAMP_KEY
        stamps = scalar_column(columns, key, f"{columns.table.name}: '{key}'", firsts).astype(np.float64)
        return np.where(np.abs(stamps - skipped / fps) < 0.5 / fps, stamps, nothing)
    lengths = np.array([len(episode.rows) for episode in episodes])
    if len(episodes) > 1 and np.array_equal(np.diff(skipped), lengths[:-1]):
        return nothing
    return (skipped - (skipped.min() == 1)) / fps


def _no_clock(columns: TableColumns) -> str:
    """Return why a table has no timestamps, for a message."""
    if (kind := columns.table.rows.features.get(TIMESTAMP_KEY)) is None:
        return "there is no column 'timestamp'"
    return f"its column 'timestamp' is of type {getattr(kind, 'dtype', kind)}, and seconds are numbers"


def frame_rate(columns: TableColumns, stamps: np.ndarray | None, spans: Sequence[slice]) -> float:
    """Return how many frames a second the timestamps of the longest episode say.

    Args:
        columns: The table's columns, for messages.
        stamps: See `timestamps`.
        spans: Each episode's rows among them.

    Raises:
        DatasetError: There are none, they do not rise, or are hardly in seconds.
    """
    name = columns.table.name
    longest = max(spans, key=lambda span: span.stop - span.start)
    steps = longest.stop - longest.start - 1
    if stamps is None or steps == 0:
        why = _no_clock(columns) if stamps is None else "no episode has more than one frame"
        raise DatasetError(
            f"{name} does not say how many frames a second it has: {why}. Say it with data.fps (--fps), "
            "or name a column of seconds with data.columns.timestamp (--column timestamp=NAME)."
        )
    seconds = float(stamps[longest.stop - 1]) - float(stamps[longest.start])
    if seconds <= 0:
        raise DatasetError(f"{name}: the timestamps of the longest episode do not rise.")
    rate = steps / seconds
    if not _RATES[0] <= rate <= _RATES[1]:
        unit = next((u for u, parts in _UNITS.items() if 1 <= rate * parts <= _RATES[1]), None)
        guess = "" if unit is None else f", as if they were {unit}"
        raise DatasetError(
            f"{name}: timestamps are in seconds, and these rise by {1 / rate:.3g} from frame to "
            f"frame{guess}, which would be {rate:.3g} frames a second. Make seconds of them (Dataset.map), "
            f"or, if that is right, say it: data.fps={rate:.6g} (--fps)."
        )
    return float(round(rate)) if abs(rate - round(rate)) < 1e-4 * rate else rate
