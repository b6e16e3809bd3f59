"""Where and when requests for chunks are answered: by a worker in real time, or in simulated time."""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Protocol

import numpy as np

from vla_client.chunks import ChunkPolicy, Observer
from vla_client.continuation import Continuation
from vla_client.errors import ConfigError, PastError
from vla_client.execution.numbers import check_executor, whole
from vla_client.execution.worker import Worker, check_process


@dataclass(frozen=True)
class Request:
    """What a policy is asked.

    Attributes:
        observation: The latest.
        continuing: What the chunk has to meet, if anything.
        options: Further keywords of `infer`.
    """

    observation: Mapping[str, Any]
    continuing: Continuation | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, policy: ChunkPolicy) -> Mapping[str, Any]:
        """Return the policy's answer."""
        keywords: dict[str, Any] = dict(self.options)
        if self.continuing is not None:
            keywords["continuing"] = self.continuing
        return policy.infer(self.observation, **keywords)


@dataclass(frozen=True)
class Answer:
    """What a policy answered.

    Attributes:
        prediction: At least `"actions"`.
        seconds: How long it took, where time is real.
    """

    prediction: Mapping[str, Any]
    seconds: float | None = None


class Engine(Protocol):
    """Answers one request after the other; what it is given is run in this order."""

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way, or its answer was not taken yet."""
        ...

    def tick(self) -> None:
        """Begin a control step."""
        ...

    def submit(self, policy: ChunkPolicy, request: Request) -> None:
        """Take a request; there is none under way."""
        ...

    def observe(self, policy: Observer, observation: Mapping[str, Any]) -> None:
        """Show a frame to a policy with a past, after all that came before."""
        ...

    def poll(self) -> Answer | None:
        """Return the answer if it is there, once. What a call raised is raised here."""
        ...

    def wait(self, seconds: float | None = None) -> Answer | None:
        """Return the answer as soon as it is there, or None after so many seconds."""
        ...

    def drain(self, seconds: float | None = None) -> bool:
        """Drop what has not begun, wait for what has, and forget it; return whether `seconds` sufficed."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class _Era:
    """What was submitted between two failures or drains: once it is over, nothing of it begins any more."""

    def __init__(self) -> None:
        self.is_over = False
        self._has_failed = False

    def call(self, function: Callable[[], Any]) -> Any:
        """Return what a function returns; None where it is not run."""
        if self.is_over or self._has_failed:
            return None
        self._has_failed = True  # unless it comes to the next line but one
        made = function()
        self._has_failed = False
        return made


class Threaded:
    """Real time: one worker thread, so that the control loop never waits for the policy.

    Arrays of an observation are copied: a robot's loop may write its next images into the same memory. After
    a failure nothing of what was handed over before it was told is begun.

    Args:
        executor: What runs the calls, one at a time and in order; a thread of its own where not given.
        clock: Seconds.
        queue: Frames that may wait to be noted by a policy with a past. They stay in memory: 128 of three
            cameras with 640 x 480 pixels are 350 MB.

    Raises:
        ConfigError: An argument is not what it should be.
    """

    def __init__(
        self,
        executor: concurrent.futures.Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        queue: int = 128,
    ) -> None:
        check_executor(executor, clock)
        self._is_own = executor is None
        self._executor = executor or Worker("vla-execution")
        self._pid = os.getpid()
        self._clock = clock
        self._queue = whole(queue, "queue, the frames that may wait for a policy with a past,", 1)
        self._era = _Era()
        self._pending: concurrent.futures.Future | None = None
        self._notes: deque[concurrent.futures.Future] = deque()
        self._left: list[concurrent.futures.Future] = []  # of eras that are over, but under way
        self._is_closed = False

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way, or its answer was not taken yet."""
        return self._pending is not None

    def tick(self) -> None:
        """Do nothing but look where we are: time passes by itself.

        Raises:
            ConfigError: This is a process that was forked from the one the engine was made in.
        """
        check_process(self._pid, "strategy")

    def submit(self, policy: ChunkPolicy, request: Request) -> None:
        """Hand a request to the worker.

        Raises:
            ConfigError: The engine is closed.
        """
        assert self._pending is None, "one request at a time"
        asked = self._clock()
        mine = Request(copied(request.observation), request.continuing, request.options)

        def call() -> Answer:
            prediction = mine.answer(policy)
            return Answer(prediction, self._clock() - asked)

        if isinstance(self._executor, Worker):
            self._executor.cut = getattr(policy, "close", None)
        self._pending = self._begin(call)

    def observe(self, policy: Observer, observation: Mapping[str, Any]) -> None:
        """Let the worker show a frame to a policy with a past, after all that came before.

        Raises:
            PastError: As many wait as may: the policy cannot keep up, and what waits is dropped.
            ConfigError: The engine is closed.
        """
        waited = sum(not one.done() for one in self._notes)
        if waited >= self._queue:
            self._drop()
            raise PastError(
                f"The policy is {waited} frames behind the robot, as many as may wait, and reads frames of "
                "the past, of which none may be missing: the episode is over. reset() begins another; a "
                "faster policy or link, a lower frequency, or Threaded(queue=...) keep up longer."
            )
        self._notes.append(self._begin(partial(policy.observe, copied(observation))))

    def poll(self) -> Answer | None:
        """Return the answer if it is there, once. What a call raised is raised, and the rest dropped."""
        try:
            self._forget_noted()
            if self._pending is None or not self._pending.done():
                return None
            if (answer := self._pending.result()) is None:  # not begun: the frame before it failed just now
                self._forget_noted()
        except BaseException:
            self._drop()
            raise
        self._pending = None
        return answer

    def wait(self, seconds: float | None = None) -> Answer | None:
        """Return the answer as soon as it is there, or None after so many seconds."""
        if self._pending is not None:
            concurrent.futures.wait([self._pending], seconds)
        return self.poll()

    def drain(self, seconds: float | None = None) -> bool:
        """Drop what has not begun, wait for what has, and forget it; return whether `seconds` sufficed."""
        self._drop()
        concurrent.futures.wait(self._left, seconds)
        self._left = [one for one in self._left if not one.done()]
        return not self._left

    def close(self) -> None:
        """Take no more calls; the worker, where it is this engine's own, ends after what it has begun."""
        self._is_closed = True
        self._drop()
        if self._is_own:
            self._executor.shutdown(wait=not self._left)

    def _begin(self, function: Callable[[], Any]) -> concurrent.futures.Future:
        if self._is_closed:
            raise ConfigError("This engine was closed: make another one.")
        check_process(self._pid, "strategy")
        return self._executor.submit(self._era.call, function)

    def _forget_noted(self) -> None:
        while self._notes and self._notes[0].done():
            self._notes.popleft().result()

    def _drop(self) -> None:
        self._era.is_over = True
        given = [*self._notes, *([] if self._pending is None else [self._pending])]
        self._left += [one for one in given if not one.cancel() and not one.done()]
        self._notes.clear()
        self._pending = None
        self._era = _Era()


class Simulated:
    """Simulated time: an answer is there a given number of control steps after it was asked for.

    Everything is computed at once and in order, so that the same calls make the same actions.

    Args:
        latency: Steps, 0 or more; or a function of a request's number, counted from 0 since the engine was
            made.

    Raises:
        ConfigError: It is not such a number.
    """

    def __init__(self, latency: int | Callable[[int], int] = 0) -> None:
        self._latency = latency if callable(latency) else whole(latency, "A simulated latency", 0)
        self._now = self._requests = self._due = 0
        self._answer: Answer | None = None

    @property
    def is_busy(self) -> bool:
        """Whether an answer was not taken yet."""
        return self._answer is not None

    def tick(self) -> None:
        """Let a control step pass."""
        self._now += 1

    def submit(self, policy: ChunkPolicy, request: Request) -> None:
        """Compute the answer, and keep it until it is due."""
        assert self._answer is None, "one request at a time"
        self._due = self._now + self.steps(self._requests)
        self._requests += 1
        self._answer = Answer(request.answer(policy))

    def steps(self, number: int) -> int:
        """Return the latency of a request."""
        if callable(self._latency):
            return whole(self._latency(number), f"The simulated latency of request {number}", 0)
        return self._latency

    def observe(self, policy: Observer, observation: Mapping[str, Any]) -> None:
        """Show a frame to the policy."""
        policy.observe(observation)

    def poll(self) -> Answer | None:
        """Return the answer if it is due, once."""
        return self.wait() if self._now >= self._due else None

    def wait(self, seconds: float | None = None) -> Answer | None:
        """Return the answer: the robot stands still until it is there. Of a bounded wait, nothing comes."""
        if seconds is not None:
            return self.poll()
        answer, self._answer = self._answer, None
        return answer

    def drain(self, seconds: float | None = None) -> bool:
        """Forget the answer; nothing is under way."""
        self._answer = None
        return True

    def close(self) -> None:
        """Do nothing."""


def copied(observation: Any) -> Any:
    """Return an observation with copies of its arrays."""
    if isinstance(observation, Mapping):
        return {name: copied(value) for name, value in observation.items()}
    return observation.copy() if isinstance(observation, np.ndarray) else observation
