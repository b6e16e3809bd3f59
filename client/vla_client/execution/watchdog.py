"""A deadline for strategies that wait for their policy."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Mapping
from typing import Any, Callable, Protocol

import numpy as np

from vla_client.execution.engines import copied
from vla_client.execution.hold import Hold, HoldFunction
from vla_client.execution.numbers import seconds
from vla_client.execution.stats import Stats


class Strategy(Protocol):
    """What turns observations into actions."""

    def act(self, observation: Mapping[str, Any], /) -> np.ndarray:
        """Return the next action `[d]`."""
        ...

    def reset(self) -> None:
        """Start a new episode."""
        ...


class Watchdog:
    """Returns a hold action wherever a strategy has none by the deadline.

    The strategy runs in a thread of its own. An action that comes too late is dropped, and the strategy is
    asked again with the observation of the then present step. The first action of an episode is waited for,
    unless `hold` is a function.

    Args:
        strategy: Such as a `RecedingHorizon` over a client.
        deadline: Seconds, above 0.
        hold: See `Hold`.
        executor: What runs the strategy, one call at a time; a thread of its own where not given.
        clock: Seconds.

    Attributes:
        stats: `steps` and `held` count.

    Raises:
        ConfigError: An argument is out of its range.
    """

    def __init__(
        self,
        strategy: Strategy,
        deadline: float,
        hold: str | HoldFunction = "last",
        *,
        executor: concurrent.futures.Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.strategy = strategy
        self.stats = Stats()
        self._deadline = seconds(deadline, "deadline")
        self._hold = Hold(hold)
        self._is_own = executor is None
        self._executor = executor or concurrent.futures.ThreadPoolExecutor(1, "vla-watchdog")
        self._clock = clock
        self._late: concurrent.futures.Future | None = None
        self._last: np.ndarray | None = None

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the strategy's action `[d]`, or the hold action; what the strategy raises is raised."""
        self.stats.steps += 1
        until = self._clock() + self._deadline
        waits = self._hold.needs_last and self._last is None
        if self._late is not None and not self._is_done(self._late, until, waits):
            return self._held(observation)
        if self._late is not None:
            late, self._late = self._late, None
            late.result()  # its action is of a step that has passed
        future = self._executor.submit(self.strategy.act, copied(observation))
        if not self._is_done(future, until, waits):
            self._late = future
            return self._held(observation)
        self._last = future.result()
        return self._last

    def reset(self) -> None:
        """Start a new episode, after a call that is still under way."""
        if self._late is not None:
            concurrent.futures.wait([self._late])
        self._late = self._last = None
        self.strategy.reset()

    def close(self) -> None:
        """End the thread, after a call that is still under way."""
        if self._is_own:
            self._executor.shutdown(wait=True)

    def _is_done(self, future: concurrent.futures.Future, until: float, waits: bool) -> bool:
        left = None if waits else max(0.0, until - self._clock())
        concurrent.futures.wait([future], left)
        return future.done()

    def _held(self, observation: Mapping[str, Any]) -> np.ndarray:
        self.stats.held += 1
        return self._hold.action(observation, self._last)
