"""Execute predicted chunks one action at a time."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vla_client.continuation import Continuation
from vla_client.errors import ConfigError, ShapeError


class ChunkPolicy(Protocol):
    """Answers one robot's observations with chunks: a session of a `RobotPolicy`, or a client of one.

    A `RobotPolicy` itself is one as well, as long as its policy reads the present alone.
    """

    def infer(
        self, observation: Mapping[str, Any], /, *, continuing: Continuation | None = None
    ) -> Mapping[str, Any]:
        """Return at least `"actions"`, `[a, d]`, executable from now on; `continuing` a chunk where given."""
        ...

    def reset(self) -> None:
        """Forget the episode."""
        ...


@runtime_checkable
class Observer(Protocol):
    """What else a `ChunkPolicy` with a past has."""

    def observe(self, observation: Mapping[str, Any], /) -> None:
        """Note a frame without answering."""
        ...


class ActionQueue:
    """The remaining actions of a predicted chunk.

    Args:
        execute: How many actions of each chunk are executed before the next one is predicted.

    Attributes:
        tail: What the last chunk predicts beyond those, `[a - execute, d]`; strategies that blend chunks read
            it.

    Raises:
        ConfigError: `execute` is not a whole number above 0.
    """

    def __init__(self, execute: int) -> None:
        try:
            steps = None if isinstance(execute, bool) else operator.index(execute)
        except TypeError:
            steps = None
        if steps is None:
            raise ConfigError(f"execute must be a whole number of actions, got {execute!r}.")
        if steps < 1:
            raise ConfigError(f"At least one action of each chunk must be executed, got execute={execute}.")
        self.execute = steps
        self._left = self.tail = np.empty((0, 0), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._left)

    def push(self, chunk: np.ndarray) -> None:
        """Replace what is left by the first `execute` actions of `chunk` `[a, d]`, and the tail by the rest.

        Raises:
            ShapeError: `chunk` is not `[a, d]`.
            ConfigError: It has fewer than `execute` actions.
        """
        chunk = np.asarray(chunk)
        if chunk.ndim != 2:
            raise ShapeError(f"A chunk must have shape [a, d], got {list(chunk.shape)}.")
        if len(chunk) < self.execute:
            raise ConfigError(
                f"The policy predicts {len(chunk)} actions at a time, so {self.execute} of them cannot be "
                f"executed; choose at most {len(chunk)}."
            )
        self._left, self.tail = chunk[: self.execute], chunk[self.execute :]

    def pop(self) -> np.ndarray:
        """Return the next action `[d]`; the queue must hold one."""
        assert len(self._left), "pop from an empty queue"
        action, self._left = self._left[0], self._left[1:]
        return action

    def clear(self) -> None:
        """Forget what is left, and the tail."""
        self._left, self.tail = self._left[:0], self.tail[:0]


class RecedingHorizon:
    """Predicts a chunk, executes its beginning, then predicts the next one.

    Args:
        policy: Asked for a new chunk whenever the last one has been executed as far as wanted. A session
            (`robot_policy.start()`) is shown every observation in between as well.
        execute: Actions executed of each chunk.

    Attributes:
        prediction: The policy's last answer, or None before the first one.

    Raises:
        ConfigError: `execute` is not a whole number above 0, or `policy` answers no observations.
    """

    def __init__(self, policy: ChunkPolicy, execute: int) -> None:
        if not callable(getattr(policy, "infer", None)):
            raise ConfigError(
                "RecedingHorizon asks for chunks by infer(observation), as the result of vla.load and its "
                f"sessions (start()) answer it; got a {type(policy).__name__}, which has no infer."
            )
        self.policy = policy
        self.prediction: Mapping[str, Any] | None = None
        self._queue = ActionQueue(execute)

    @property
    def tail(self) -> np.ndarray:
        """What the last chunk predicts beyond the actions that are executed of it, `[a - execute, d]`."""
        return self._queue.tail

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next action `[d]`; the policy is asked for a chunk at every `execute`-th observation.

        Raises:
            ShapeError: The policy's chunk is not `[a, d]`.
            ConfigError: The chunk is shorter than `execute`.
        """
        if not len(self._queue):
            self.prediction = self.policy.infer(observation)
            self._queue.push(self.prediction["actions"])
        elif isinstance(self.policy, Observer):
            self.policy.observe(observation)
        return self._queue.pop()

    def reset(self) -> None:
        """Start a new episode: drop the rest of the chunk and reset the policy."""
        self._queue.clear()
        self.prediction = None
        self.policy.reset()
