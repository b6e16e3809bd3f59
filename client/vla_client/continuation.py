"""What a new chunk continues: the rest of the chunk that is being executed."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_client.errors import ConfigError, ShapeError

METHODS = ("guided", "prefix")
PICKS = ("medoid", "nearest")
"""How the best of several chunks is found: by the others, or by what is continued."""

SCHEDULES = ("exp", "linear", "ones", "zeros")


@dataclass(frozen=True)
class Continuation:
    """The rest of the chunk that is being executed, which the next one has to meet (real-time chunking).

    Args:
        actions: `[k, d]` in robot units, finite. The first is the first one to be executed after the
            observation was taken.
        delay: How many of them will have been executed when the new chunk arrives, 0 to k.
        method: "guided" pulls the new chunk towards them (arXiv 2506.07339), which any flow policy can do;
            "prefix" gives the first `delay` of them as known (arXiv 2512.05964), for a policy that
            learned so.
        schedule: Guided: how the pull fades behind the first `delay` steps: "exp", "linear", "ones" (it does
            not) or "zeros" (at once).
        max_weight: Guided: the largest weight of the pull, above 0.

    Raises:
        ShapeError: `actions` is not `[k, d]`.
        ConfigError: Another argument is out of its range, or an action is not finite.
    """

    actions: np.ndarray
    delay: int
    method: str = "guided"
    schedule: str = "exp"
    max_weight: float = 5.0

    def __post_init__(self) -> None:
        actions = _numbers(self.actions)
        object.__setattr__(self, "actions", actions)
        object.__setattr__(self, "delay", _whole(self.delay))
        if not 0 <= self.delay <= len(actions):
            raise ConfigError(
                f"A continuation's delay must lie in 0 to {len(actions)}, the actions that are left, "
                f"got {self.delay}."
            )
        for name, known in (("method", METHODS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"A continuation's {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}."
                )
        weight = self.max_weight
        if isinstance(weight, bool) or not isinstance(weight, (int, float, np.floating, np.integer)):
            raise ConfigError(f"A continuation's max_weight must be a number, got {weight!r}.")
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"A continuation's max_weight must be finite and above 0, got {weight}.")
        object.__setattr__(self, "max_weight", float(weight))


def _numbers(value: Any) -> np.ndarray:
    actions = np.asarray(value)
    if actions.ndim != 2 or actions.dtype.kind not in "fiu":
        raise ShapeError(
            f"A continuation's actions must be numbers [k, d], got {actions.dtype} {list(actions.shape)}."
        )
    actions = actions.astype(np.float32)
    if not np.isfinite(actions).all():
        raise ConfigError("A continuation's actions must be finite.")
    return actions


def _whole(value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"A continuation's delay must be a whole number of steps, got {value!r}.") from None
