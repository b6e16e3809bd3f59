"""Execute predicted chunks one action at a time."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vla_client.continuation import Continuation
from vla_client.errors import ConfigError, PastError, ShapeError
from vla_client.pacing import paced, step_limit


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


def told(policy: Any, name: str, in_contract: str, otherwise: Any) -> Any:
    """Return what a policy says of itself, or what a client's server says of its robot."""
    contract = getattr(policy, "robot", None)
    return getattr(policy, name, getattr(contract, in_contract, otherwise))


def reads_past(policy: Any) -> bool:
    """Return whether a policy must be shown every frame; one that does not say so has a past."""
    return isinstance(policy, Observer) and told(policy, "past", "past", None) != 0


def check_past(lost: Exception | None) -> None:
    """Raise `PastError` where frames of the past are missing, because of this error in an earlier step."""
    if lost is not None:
        raise PastError(
            f"This episode is over, since its policy has missed frames of the past ({lost}); "
            "reset() begins another."
        ) from lost


class ActionQueue:
    """The remaining actions of a predicted chunk.

    Args:
        execute: How many actions of each chunk are executed before the next one is predicted.

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
        self._left = self._tail = np.empty((0, 0), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._left)

    @property
    def tail(self) -> np.ndarray:
        """What the last chunk predicts beyond them, `[a - execute, d]`, for strategies that blend chunks."""
        return self._tail.copy()

    def push(self, chunk: np.ndarray) -> None:
        """Replace what is left by the first `execute` actions of `chunk` `[a, d]`, and the tail by the rest.

        Raises:
            ShapeError: `chunk` is not `[a, d]`.
            ConfigError: It has fewer than `execute` actions.
        """
        chunk = np.array(chunk)  # a copy: whoever made it may write into theirs
        if chunk.ndim != 2:
            raise ShapeError(f"A chunk must have shape [a, d], got {list(chunk.shape)}.")
        if len(chunk) < self.execute:
            raise ConfigError(
                f"The policy predicts {len(chunk)} actions at a time, so {self.execute} of them cannot be "
                f"executed; choose at most {len(chunk)}."
            )
        self._left, self._tail = chunk[: self.execute], chunk[self.execute :]

    def pop(self) -> np.ndarray:
        """Return the next action `[d]`; the queue must hold one."""
        assert len(self._left), "pop from an empty queue"
        action, self._left = self._left[0], self._left[1:]
        return action.copy()

    def clear(self) -> None:
        """Forget what is left, and the tail."""
        self._left, self._tail = self._left[:0], self._tail[:0]


class RecedingHorizon:
    """Predicts a chunk, executes its beginning, then predicts the next one.

    Where a client's server names a largest change per control step, it is held at the seams as well.

    Args:
        policy: Asked for a new chunk whenever the last one has been executed as far as wanted. A session
            (`robot_policy.start()`) is shown every observation in between as well.
        execute: Actions executed of each chunk.

    Attributes:
        prediction: The policy's last answer, or None before the first one.
        paced: Actions that were changed because they lay farther from the one before than the server allows.

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
        self.paced = 0
        self._queue = ActionQueue(execute)
        self._last: np.ndarray | None = None
        self._lost: Exception | None = None  # why frames of the past are missing

    @property
    def tail(self) -> np.ndarray:
        """What the last chunk predicts beyond the actions that are executed of it, `[a - execute, d]`."""
        return self._queue.tail

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the next action `[d]`; the policy is asked for a chunk at every `execute`-th observation.

        Raises:
            ShapeError: The policy's chunk is not `[a, d]`.
            ConfigError: The chunk is shorter than `execute`.
            PastError: The policy reads frames of the past and has missed one, because it raised an error in
                an earlier step: `reset` begins another episode.
            VlaError: Whatever the policy raised.
        """
        check_past(self._lost)
        try:
            if not len(self._queue):
                self.prediction = self.policy.infer(observation)
                self._queue.push(self.prediction["actions"])
            elif isinstance(self.policy, Observer):
                self.policy.observe(observation)
        except Exception as error:
            self._lost = error if reads_past(self.policy) else None
            raise
        said = self._queue.pop()
        action = paced(said[None], self._last, step_limit(self.policy))[0]
        self.paced += not np.array_equal(said, action)
        self._last = action
        return action.copy()

    def reset(self) -> None:
        """Start a new episode: drop the rest of the chunk and reset the policy."""
        self._queue.clear()
        self.prediction = self._last = None
        try:
            self.policy.reset()
        except Exception as error:
            self._lost = error if reads_past(self.policy) else None
            raise
        self._lost = None
