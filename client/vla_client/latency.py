"""How long answers take: statistics of the last calls."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

WINDOW = 1000
"""Calls that are remembered."""


@dataclass(frozen=True)
class Times:
    """Statistics of the times in the window, milliseconds; NaN before the first one."""

    p50: float = math.nan
    p95: float = math.nan
    max: float = math.nan
    last: float = math.nan

    @classmethod
    def of(cls, times: list[float]) -> Times:
        """Summarise times, the last one last."""
        if not times:
            return cls()
        ordered = sorted(times)
        return cls(_at(ordered, 0.5), _at(ordered, 0.95), ordered[-1], times[-1])


class Latency:
    """Times of the last calls that were answered: one slow call is forgotten after `window` others.

    Args:
        window: Calls that are remembered.

    Attributes:
        count: Calls that were answered, those that are forgotten included.
        failed: Calls that were not.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._round_trips: deque[float] = deque(maxlen=window)
        self._server: deque[float] = deque(maxlen=window)
        self._lock = threading.Lock()
        self.count = 0
        self.failed = 0

    def add(self, round_trip: float, server: float | None) -> None:
        """Note a call: milliseconds from asking to the answer, and those that the server says it took."""
        with self._lock:
            self.count += 1
            self._round_trips.append(round_trip)
            if server is not None:
                self._server.append(server)

    @property
    def round_trip(self) -> Times:
        """From asking to the answer, reconnecting included."""
        return self._summary(self._round_trips)

    @property
    def server(self) -> Times:
        """The part of it that the server says it took, waiting in its queue included."""
        return self._summary(self._server)

    def _summary(self, times: deque[float]) -> Times:
        with self._lock:
            noted = list(times)
        return Times.of(noted)

    def __repr__(self) -> str:
        trip = self.round_trip
        return (
            f"Latency({self.count} calls, {self.failed} failed, round trip p50 {trip.p50:.1f} ms, "
            f"p95 {trip.p95:.1f} ms, max {trip.max:.1f} ms)"
        )


def _at(ordered: list[float], share: float) -> float:
    """Return a percentile, interpolated between its neighbours."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
