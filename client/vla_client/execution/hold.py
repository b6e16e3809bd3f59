"""What is executed where there is no action."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Optional

import numpy as np

from vla_client.errors import ActionError, ConfigError

HOLDS = ("last", "zero")

HoldFunction = Callable[[Mapping[str, Any], Optional[np.ndarray]], np.ndarray]
"""Of the observation, and of the last action `[d]` where there was one."""


class Hold:
    """The action of steps that have none.

    Args:
        rule: "last" repeats the last action, which holds a robot that is commanded by positions; "zero" holds
            one that is commanded by velocities or differences; or a function of the observation and the last
            action (None before the first).

    Attributes:
        needs_last: Whether there must have been an action.

    Raises:
        ConfigError: There is no such rule.
    """

    def __init__(self, rule: str | HoldFunction) -> None:
        if not callable(rule) and rule not in HOLDS:
            raise ConfigError(f"hold must be one of {', '.join(HOLDS)} or a function, got {rule!r}.")
        self._rule = rule
        self.needs_last = not callable(rule)

    def action(self, observation: Mapping[str, Any], last: np.ndarray | None) -> np.ndarray:
        """Return the action `[d]`.

        Raises:
            ActionError: A function returned something that no robot can execute.
        """
        if not callable(self._rule):
            assert last is not None, "there was no action yet"
            return last.copy() if self._rule == "last" else np.zeros_like(last)
        # Copies: a function may write into what it is given, and return an array of its own.
        given = None if last is None else last.copy()
        made = np.array(self._rule(observation, given), dtype=np.float32)
        if made.ndim != 1 or not np.isfinite(made).all() or (last is not None and made.shape != last.shape):
            raise ActionError(f"hold must return a finite action [d], got {made.tolist()}.")
        return made
