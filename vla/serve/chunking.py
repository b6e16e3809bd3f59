"""From predicted chunks to one action at a time; numpy only, so that it runs on the robot's side too."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from vla.errors import ConfigError, ShapeError


class ChunkPolicy(Protocol):
    """Whatever answers an observation with a chunk: a `RobotPolicy`, or a client of one."""

    def infer(self, observation: Mapping[str, Any], /) -> Mapping[str, Any]:
        """Return at least `"actions"`, `[a, d]`."""
        ...

    def reset(self) -> None:
        """Forget the episode."""
        ...


class ActionQueue:
    """The part of a predicted chunk that is still to be executed.

    Args:
        execute: How many actions of each chunk are executed before the next one is asked for.

    Raises:
        ConfigError: `execute` is not positive.
    """

    def __init__(self, execute: int) -> None:
        if execute < 1:
            raise ConfigError(f"At least one action of each chunk must be executed, got execute={execute}.")
        self.execute = execute
        self._left = np.empty((0, 0), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._left)

    def push(self, chunk: np.ndarray) -> None:
        """Replace what is left by the first `execute` actions of `chunk` `[a, d]`.

        Raises:
            ShapeError: `chunk` is not `[a, d]`.
            ConfigError: It is shorter than what is to be executed of it.
        """
        chunk = np.asarray(chunk)
        if chunk.ndim != 2:
            raise ShapeError(f"A chunk must have shape [a, d], got {list(chunk.shape)}.")
        if len(chunk) < self.execute:
            raise ConfigError(
                f"The policy predicts {len(chunk)} actions at a time, so {self.execute} of them cannot be "
                f"executed; choose at most {len(chunk)}."
            )
        self._left = chunk[: self.execute]

    def pop(self) -> np.ndarray:
        """Return the next action `[d]`; the queue must hold one."""
        assert len(self._left), "pop from an empty queue"
        action, self._left = self._left[0], self._left[1:]
        return action

    def clear(self) -> None:
        """Forget what is left."""
        self._left = self._left[:0]


class RecedingHorizon:
    """Predicts a chunk, executes its beginning, then looks again.

    Args:
        policy: Asked for a new chunk whenever the last one has been executed as far as wanted.
        execute: Actions executed of each chunk.

    Attributes:
        prediction: The policy's last answer, or None before the first one.

    Raises:
        ConfigError: `execute` is not positive.
    """

    def __init__(self, policy: ChunkPolicy, execute: int) -> None:
        self.policy = policy
        self.prediction: Mapping[str, Any] | None = None
        self._queue = ActionQueue(execute)

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next action `[d]`; the policy sees only every `execute`-th observation.

        Raises:
            ShapeError: The policy's chunk is not `[a, d]`.
            ConfigError: The chunk is shorter than `execute`.
        """
        if not len(self._queue):
            self.prediction = self.policy.infer(observation)
            self._queue.push(self.prediction["actions"])
        return self._queue.pop()

    def reset(self) -> None:
        """Start a new episode: drop what is left of the chunk and reset the policy."""
        self._queue.clear()
        self.prediction = None
        self.policy.reset()
