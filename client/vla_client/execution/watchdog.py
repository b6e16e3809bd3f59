"""A deadline for strategies that wait for their policy."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import time
from collections.abc import Mapping
from typing import Any, Callable, Protocol

import numpy as np

from vla_client.chunks import check_past, reads_past
from vla_client.errors import ConfigError, DeadlineError, PastError
from vla_client.execution.engines import copied
from vla_client.execution.hold import Hold, HoldFunction
from vla_client.execution.numbers import check_executor, seconds
from vla_client.execution.stats import Stats
from vla_client.execution.worker import Worker, check_process
from vla_client.pacing import paced, step_limit

logger = logging.getLogger(__name__)


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

    A policy that reads frames of the past would miss those of steps at which the strategy is still at work on
    an earlier one: there the episode ends with `PastError`. `Prefetch(..., hold=...)` keeps such frames until
    the policy is free.

    Args:
        strategy: Such as a `RecedingHorizon` over a client.
        deadline: Seconds, above 0.
        hold: See `Hold`.
        executor: What runs the strategy, one call at a time; a thread of its own where not given.
        clock: Seconds.

    Attributes:
        stats: `steps`, `held` and `paced` count.

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
        if not callable(getattr(strategy, "act", None)):
            raise ConfigError(
                "Watchdog asks a strategy for actions by act(observation), as RecedingHorizon answers; got a "
                f"{type(strategy).__name__}, which has no act."
            )
        check_executor(executor, clock)
        self.strategy = strategy
        self.stats = Stats()
        self._deadline = seconds(deadline, "deadline")
        self._hold = Hold(hold)
        self._is_own = executor is None
        self._executor = executor or Worker("vla-watchdog")
        if isinstance(self._executor, Worker):
            self._executor.cut = getattr(getattr(strategy, "policy", None), "close", None)
        self._pid = os.getpid()
        self._clock = clock
        self._late: concurrent.futures.Future | None = None
        self._is_closed = False
        self._last: np.ndarray | None = None
        self._lost: PastError | None = None  # why frames of the past are missing

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the strategy's action `[d]`, or the hold action; what the strategy raises is raised.

        Raises:
            ConfigError: The watchdog is closed, or of another process.
            PastError: The policy reads frames of the past and has missed some: `reset` begins another
                episode.
        """
        self._check_open()
        check_past(self._lost)
        self.stats.steps += 1
        until = self._clock() + self._deadline
        waits = self._hold.needs_last and self._last is None
        if self._late is not None and not self._is_done(self._late, until, waits):
            self._check_shown()
            return self._held(observation)
        if self._late is not None:
            late, self._late = self._late, None
            late.result()  # its action is of a step that has passed
        future = self._executor.submit(self.strategy.act, copied(observation))
        if not self._is_done(future, until, waits):
            self._late = future
            return self._held(observation)
        said = np.array(future.result())
        action = paced(said[None], self._last, self._step_limit())[0]
        self.stats.paced += not np.array_equal(said, action)
        self._last = action
        return action.copy()

    def reset(self, timeout: float = 30.0) -> None:
        """Start a new episode, after a call that is still under way.

        Args:
            timeout: Seconds to wait for that.

        Raises:
            DeadlineError: It has not ended in time: no episode has begun.
            ConfigError: The watchdog is closed, or `timeout` is not seconds.
        """
        self._check_open()
        if not self._has_ended(seconds(timeout, "timeout")):
            raise DeadlineError(
                f"The strategy's last call has not ended within {timeout:g} s, so that no episode can begin. "
                "Wait longer, reset(timeout=...), or close the client, which ends its call."
            )
        self._late = self._last = None
        self.strategy.reset()
        self._lost = None

    def close(self, timeout: float = 5.0) -> None:
        """Let go of the thread; it ends by itself after a call that is still under way.

        Args:
            timeout: Seconds to wait for that; a warning is logged where they do not suffice.

        Raises:
            ConfigError: `timeout` is not seconds.
        """
        until = seconds(timeout, "timeout")
        if self._is_closed:
            return
        self._is_closed = True
        has_ended = self._has_ended(until)
        if not has_ended:
            logger.warning(
                "A watchdog was closed while its strategy was still at work after %g s; its thread ends with "
                "that call.",
                until,
            )
        if self._is_own:
            self._executor.shutdown(wait=has_ended)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConfigError("This Watchdog was closed: make another one.")
        check_process(self._pid, "Watchdog")

    def _check_shown(self) -> None:
        """End the episode of a policy with a past: it will not be shown this step's frame."""
        if reads_past(getattr(self.strategy, "policy", None)):
            self._lost = PastError(
                "The strategy was still at work on an earlier step when the next one was due, and its policy "
                "reads frames of the past, of which none may be missing: the episode is over. reset() begins "
                "another. Prefetch(..., hold=...), without a Watchdog, keeps frames until the policy is free."
            )
            raise self._lost

    def _step_limit(self) -> np.ndarray | None:
        return step_limit(getattr(self.strategy, "policy", None))

    def _has_ended(self, timeout: float) -> bool:
        if self._late is None:
            return True
        if not self._late.cancel():
            concurrent.futures.wait([self._late], timeout)
        return self._late.done()

    def _is_done(self, future: concurrent.futures.Future, until: float, waits: bool) -> bool:
        left = None if waits else max(0.0, until - self._clock())
        concurrent.futures.wait([future], left)
        return future.done()

    def _held(self, observation: Mapping[str, Any]) -> np.ndarray:
        self.stats.held += 1
        self._last = self._hold.action(observation, self._last)
        return self._last.copy()
