"""What the robot's side and rollouts ask of a policy; the strategies themselves are `vla_client`'s."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vla_client.chunks import ActionQueue, ChunkPolicy, Observer, RecedingHorizon

__all__ = [
    "ActionQueue",
    "BatchPolicy",
    "ChunkPolicy",
    "Observer",
    "RecedingHorizon",
    "past_of",
    "session_of",
]


class BatchPolicy(Protocol):
    """What answers observations of several episodes at once: a `RobotPolicy`.

    One that reads frames of the past has `past`, the steps back to the earliest of them, and `start()`, which
    returns the session of an episode (see `session_of`).
    """

    def infer_batch(
        self, observations: Sequence[Any], /, *, generator: Any = None, text: bool = False
    ) -> Sequence[Mapping[str, Any]]:
        """Return for each observation at least `"actions"` `[a, d]`, and `"text"` where asked for.

        Where there is a past, each is a pair of session and observation.
        """
        ...

    def reset(self) -> None:
        """Forget the episodes."""
        ...


def past_of(policy: BatchPolicy) -> int:
    """Return how many steps before the present the earliest frame lies that a policy reads."""
    return getattr(policy, "past", 0)


def session_of(policy: BatchPolicy) -> Any:
    """Return the session of a new episode where the policy reads frames of the past, else None."""
    return policy.start() if past_of(policy) else None  # type: ignore[attr-defined]
