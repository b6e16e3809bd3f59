"""The numbers behind the page's figures: a histogram of latencies, and which part of a chunk was executed."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vla.serve.page.watch import Snapshot

BINS = 30
"""Bars of a histogram at most, without the one for what lies beyond."""

MAX_DIMENSIONS, MAX_STEPS = 64, 256
"""Of a chunk that is shown."""

SAME = 1e-4
"""Two actions are the same within so much of the chunk's range: a client sends back what it was given."""


def histogram(seconds: Sequence[float]) -> dict[str, Any] | None:
    """Return a histogram of seconds in milliseconds; None of none.

    The bins reach to the 99th percentile, so that one slow call does not flatten the others into one bar.

    Returns:
        `low` and `step`, ms, round numbers; `counts` of the bins; `over`, how many lie beyond the last one;
        `max`, the largest, ms; `count`, of all.
    """
    values = np.asarray(seconds, dtype=np.float64) * 1e3
    if not values.size:
        return None
    smallest, high, largest = (float(one) for one in (values.min(), np.percentile(values, 99), values.max()))
    step = _round_up(max(high - smallest, 0.1 * high, 0.1) / (BINS - 2))
    low = math.floor(smallest / step) * step
    bins = min(BINS, math.floor((high - low) / step) + 1)
    places = np.floor((values - low) / step + 1e-9).astype(np.int64)
    counts = np.bincount(np.clip(places, 0, bins), minlength=bins + 1)
    return {
        "low": round(low, 6),
        "step": step,
        "counts": counts[:bins].tolist(),
        "over": int(counts[bins]),
        "max": round(largest, 3),
        "count": int(values.size),
    }


def _round_up(value: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    factor = next(one for one in (1, 2, 5, 10) if one * power >= value * (1 - 1e-9))
    return float(f"{factor * power:.6g}")


def executed(seen: Snapshot, frequency: float | None) -> tuple[int, str] | None:
    """Return how many steps of the previous chunk were executed when the last request came, and who says so.

    "client": the request brought the actions that were left, and the first of them is in the previous chunk.
    "clock": as many control steps as passed since that chunk was sent, at most all of it. None: nothing
    tells.
    """
    if seen.previous is None:
        return None
    if seen.continuing is not None and len(seen.continuing.actions):
        first = seen.continuing.actions[0]
        if first.shape == seen.previous.shape[1:]:
            apart = np.abs(seen.previous - first).max(axis=1, initial=0.0)
            nearest = int(apart.argmin())
            if apart[nearest] <= SAME * max(float(np.ptp(seen.previous)), 1e-6):
                return nearest, "client"
    if frequency is None or seen.gap is None:
        return None
    return min(len(seen.previous), max(0, round(seen.gap * frequency))), "clock"


def chunk_figure(seen: Snapshot, frequency: float | None) -> dict[str, Any] | None:
    """Return the last chunk and the one before as JSON values; None: there is none.

    Returns:
        `values`, a list of steps for each dimension; `previous`, the same of the chunk before, or None;
        `executed`, how many of its steps were, or None; `said_by`, see `executed`; `delay`, how many steps
        of the previous chunk the client meant to execute still; `left_out`, dimensions that are not shown.
    """
    if seen.chunk is None:
        return None
    count = executed(seen, frequency)
    shown = count is not None and seen.previous is not None
    return {
        "values": _columns(seen.chunk),
        "previous": _columns(seen.previous) if shown and seen.previous is not None else None,
        "executed": None if count is None else count[0],
        "said_by": None if count is None else count[1],
        "delay": None if seen.continuing is None else seen.continuing.delay,
        "left_out": max(0, seen.chunk.shape[1] - MAX_DIMENSIONS),
    }


def _columns(chunk: np.ndarray) -> list[list[float | None]]:
    shown = chunk[:MAX_STEPS, :MAX_DIMENSIONS].T
    return [
        [float(f"{value:.5g}") if math.isfinite(value) else None for value in column]
        for column in shown.tolist()
    ]
