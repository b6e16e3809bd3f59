"""Between the wire and the policy: a robot's keys and limits, or neither."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vla.types import STATE_KEY


class Keys(Protocol):
    """How a client names things: a `vla.serve.keys.KeyMap`."""

    def observation(self, request: Mapping[str, Any], /) -> dict[str, Any]:
        """Return what was measured by the policy's keys."""
        ...

    def reply(self, answer: Mapping[str, Any], request: Mapping[str, Any] | None = None, /) -> dict[str, Any]:
        """Return an answer by the client's keys."""
        ...


@dataclass(frozen=True)
class Boundary:
    """What is done to every observation on the way in, and to every chunk on the way out.

    Args:
        keys: The client's names; None: the policy's own.
        limits: A `vla.serve.limits.Limits`; None: none.
    """

    keys: Keys | None = None
    limits: Any = None

    def observation(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        """Return an observation by the policy's keys.

        Raises:
            ObservationError: It cannot be acted on; the field is named as the client names it.
        """
        observation = dict(measured) if self.keys is None else self.keys.observation(measured)
        if self.limits is not None and STATE_KEY in observation:
            field = STATE_KEY if STATE_KEY in measured else "the state"
            self.limits.state.check(np.asarray(observation[STATE_KEY]), field)
        return observation

    def limited(
        self, actions: np.ndarray, observation: Mapping[str, Any], continuing: Any
    ) -> tuple[np.ndarray, int]:
        """Return a chunk `[a, d]` within the limits, and how many of its values were changed.

        Raises:
            ActionError: It is not one for this robot.
        """
        if self.limits is None:
            return actions, 0
        state = observation.get(STATE_KEY)
        made = self.limits.action.apply(
            actions, state=None if state is None else np.asarray(state), continuing=continuing
        )
        return made.actions, made.clipped

    def reply(self, answer: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
        """Return an answer by the client's keys."""
        return dict(answer) if self.keys is None else self.keys.reply(answer, measured)
