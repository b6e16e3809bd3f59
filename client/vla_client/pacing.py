"""The largest change from one action to the next, held where actions are executed.

A server holds every chunk to it, but only the robot's side knows at which step one chunk takes over from
another.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def step_limit(policy: Any) -> np.ndarray | None:
    """Return the largest change of each dimension, `[d]` in robot units, inf for none.

    Returns:
        None where the policy is not a client, or its server names no such limit.
    """
    told = getattr(getattr(policy, "robot", None), "step", None)
    if told is None or all(change is None for change in told):
        return None
    return np.array([np.inf if change is None else change for change in told], dtype=np.float64)


def paced(actions: np.ndarray, before: np.ndarray | None, step: np.ndarray | None) -> np.ndarray:
    """Return actions that change by at most `step` from each to the next.

    Args:
        actions: `[a, d]`.
        before: The action `[d]` that was executed before them; None: there was none.
        step: `[d]`, inf for none; None: no limit.
    """
    if step is None or before is None:
        return actions
    made = actions.astype(np.float64)
    last = before.astype(np.float64)
    for action in made:
        np.clip(action, last - step, last + step, out=action)
        last = action
    # Rounding must not count as a change.
    same = np.abs(made - actions) <= 1e-6 * np.maximum(1.0, np.abs(made))
    return np.where(same, actions, made).astype(actions.dtype)
