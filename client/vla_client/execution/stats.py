"""What happened while chunks were executed, and how long the next one will take."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from vla_client.execution.numbers import whole

KEPT = 1000
"""Measurements that are kept."""


@dataclass
class Stats:
    """Counts of a strategy since it was made.

    Attributes:
        steps: Actions that were returned.
        requests: Chunks that were asked for.
        merged: Chunks of which actions could be executed.
        discarded: Chunks that came later than the known steps that they continue, and were asked for again.
        expired: Chunks of which no step was left when they came.
        late: Guided chunks that came later than was estimated, and are executed all the same.
        held: Steps at which no action was left, or none came by the deadline, and the hold action was
            returned.
        paced: Actions that were changed because they lay farther from the one before than the server's limits
            allow in one step.
        waited: Steps at which the control loop waited for a chunk; not the first one of an episode.
        delays: How many steps the last chunks took.
        seconds: How long the last chunks took, in seconds, where time is real.
    """

    steps: int = 0
    requests: int = 0
    merged: int = 0
    discarded: int = 0
    expired: int = 0
    late: int = 0
    held: int = 0
    paced: int = 0
    waited: int = 0
    delays: deque[int] = field(default_factory=lambda: deque(maxlen=KEPT))
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))


class DelayEstimate:
    """How many steps the next chunk will take: the most that the last few took.

    The window is bounded, so that one slow call (the first one, which compiles) is forgotten.

    Args:
        initial: What is assumed before the first measurement.
        window: How many measurements count.

    Raises:
        ConfigError: `initial` is not a whole number of at least 0, or `window` of at least 1.
    """

    def __init__(self, initial: int, window: int = 10) -> None:
        self.initial = whole(initial, "The first estimate of the delay", 0)
        self._measured: deque[int] = deque(maxlen=whole(window, "The window of the delay's estimate", 1))

    @property
    def steps(self) -> int:
        """The estimate."""
        return max(self._measured, default=self.initial)

    def add(self, steps: int) -> None:
        """Note a measurement."""
        self._measured.append(steps)
