"""Where and when requests for chunks are answered: by a worker in real time, or in simulated time."""

from __future__ import annotations

import concurrent.futures
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Protocol

import numpy as np

from vla_client.chunks import ChunkPolicy
from vla_client.continuation import Continuation
from vla_client.execution.numbers import whole


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

    def run(self, call: Callable[[], Any]) -> None:
        """Take a call that has no answer, such as a frame to be noted."""
        ...

    def poll(self) -> Answer | None:
        """Return the answer if it is there, once. What a call raised is raised here."""
        ...

    def wait(self, seconds: float | None = None) -> Answer | None:
        """Return the answer as soon as it is there, or None after so many seconds."""
        ...

    def drain(self) -> None:
        """Wait for all that is under way and forget it."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class Threaded:
    """Real time: one worker thread, so that the control loop never waits for the policy.

    Arrays of an observation are copied: a robot's loop may write its next images into the same memory.

    Args:
        executor: What runs the calls, one at a time and in order; a thread of its own where not given.
        clock: Seconds.
    """

    def __init__(
        self,
        executor: concurrent.futures.Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_own = executor is None
        self._executor = executor or concurrent.futures.ThreadPoolExecutor(1, "vla-execution")
        self._clock = clock
        self._pending: concurrent.futures.Future | None = None
        self._calls: deque[concurrent.futures.Future] = deque()

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way, or its answer was not taken yet."""
        return self._pending is not None

    def tick(self) -> None:
        """Do nothing: time passes by itself."""

    def submit(self, policy: ChunkPolicy, request: Request) -> None:
        """Hand a request to the worker."""
        assert self._pending is None, "one request at a time"
        asked = self._clock()
        mine = Request(copied(request.observation), request.continuing, request.options)

        def call() -> Answer:
            prediction = mine.answer(policy)
            return Answer(prediction, self._clock() - asked)

        self._pending = self._executor.submit(call)

    def run(self, call: Callable[[], Any]) -> None:
        """Hand a call to the worker."""
        self._calls.append(self._executor.submit(call))

    def poll(self) -> Answer | None:
        """Return the answer if it is there, once."""
        while self._calls and self._calls[0].done():
            self._calls.popleft().result()
        if self._pending is None or not self._pending.done():
            return None
        done, self._pending = self._pending, None
        return done.result()

    def wait(self, seconds: float | None = None) -> Answer | None:
        """Return the answer as soon as it is there, or None after so many seconds."""
        if self._pending is not None:
            concurrent.futures.wait([self._pending], seconds)
        return self.poll()

    def drain(self) -> None:
        """Wait for all that is under way and forget it, with what it raised."""
        concurrent.futures.wait([*self._calls, *([] if self._pending is None else [self._pending])])
        self._calls.clear()
        self._pending = None

    def close(self) -> None:
        """End the worker, where it is this engine's own, after what it has begun."""
        if self._is_own:
            self._executor.shutdown(wait=True)


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

    def run(self, call: Callable[[], Any]) -> None:
        """Run a call."""
        call()

    def poll(self) -> Answer | None:
        """Return the answer if it is due, once."""
        return self.wait() if self._now >= self._due else None

    def wait(self, seconds: float | None = None) -> Answer | None:
        """Return the answer: the robot stands still until it is there. Of a bounded wait, nothing comes."""
        if seconds is not None:
            return self.poll()
        answer, self._answer = self._answer, None
        return answer

    def drain(self) -> None:
        """Forget the answer."""
        self._answer = None

    def close(self) -> None:
        """Do nothing."""


def copied(observation: Any) -> Any:
    """Return an observation with copies of its arrays."""
    if isinstance(observation, Mapping):
        return {name: copied(value) for name, value in observation.items()}
    return observation.copy() if isinstance(observation, np.ndarray) else observation
