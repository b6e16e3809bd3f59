"""Safety at the boundary: how far an action may go, how fast it may change, and which states are acted on.

Nothing here is silent: what was clipped is counted in the reply by dimension, what cannot be acted on is
refused, and where the limits come from stands in the metadata frame. All numbers are in robot units.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from vla_client.continuation import Continuation

from vla.errors import ActionError, ObservationError


@dataclass(frozen=True)
class Limited:
    """A chunk within limits.

    Attributes:
        actions: float32 `[a, d]`.
        clipped: Entries that were changed.
        dimensions: How many of them in each dimension, by its name; those with none are left out.
    """

    actions: np.ndarray
    clipped: int = 0
    dimensions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ActionLimits:
    """What every action is held to.

    Attributes:
        names: What the dimensions are called.
        low: `[d]`, -inf for none.
        high: `[d]`, inf for none.
        step: Largest change from one step to the next, `[d]`, inf for none.
        relative: Whether a dimension is learned relative to the state of the same place: there the first
            step is held to the state. `[d]`.
        source: Where low and high come from, in words.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    step: np.ndarray
    relative: tuple[bool, ...]
    source: str

    def apply(
        self, actions: np.ndarray, *, state: np.ndarray | None = None, continuing: Continuation | None = None
    ) -> Limited:
        """Return a chunk within the limits; the step limit acts within the chunk and at its seam.

        The range is applied first, then the change: a step that starts outside the range comes back at the
        speed that is allowed.

        Args:
            actions: `[a, d]`.
            state: The observation's, `[m]`: what the first step of relative dimensions is compared with.
            continuing: The `Continuation` that the chunk was asked to continue. It may take over earlier than
                after `delay` steps, so that each step until then is compared with the one of `continuing`
                before it as well, and the first with its first: what was executed before that is not told.
                Where both cannot be held, `continuing` counts. A later step is not known here.

        Raises:
            ActionError: The chunk has another shape, or a value that is not finite.
        """
        made = np.asarray(actions, dtype=np.float32)
        width = len(self.names)
        if made.ndim != 2 or not len(made) or made.shape[1] != width:
            raise ActionError(
                f"The policy answered with a chunk {list(made.shape)}, and this robot's actions are "
                f"[a, {width}]; no action is returned."
            )
        if not np.isfinite(made).all():
            step, dim = (int(place) for place in np.argwhere(~np.isfinite(made))[0])
            raise ActionError(
                f"The policy answered with {made[step, dim]} at step {step}, dimension {dim} "
                f"('{self.names[dim]}'), so no action is returned."
            )
        limited = np.clip(made, _inwards(self.low, 1), _inwards(self.high, -1))
        if np.isfinite(self.step).any():
            limited = self._paced(limited, state, continuing)
        changed = limited != made
        counts = changed.sum(axis=0)
        named = {self.names[dim]: int(count) for dim, count in enumerate(counts) if count}
        return Limited(limited, int(counts.sum()), named)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the metadata frame; None stands for none."""
        return {
            "low": _plain(self.low),
            "high": _plain(self.high),
            "step": _plain(self.step),
            "source": self.source,
        }

    @classmethod
    def of_contract(cls, contract: Mapping[str, Any]) -> Self | None:
        """Rebuild limits from a server's contract (`vla.serve.contract`); None where it names none."""
        if contract.get("limits") is None:
            return None
        action, limits = contract["robot"]["action"], contract["limits"]["action"]
        names = tuple(action["names"])
        ends = (
            _filled(limits["low"], -np.inf),
            _filled(limits["high"], np.inf),
            _filled(limits["step"], np.inf),
        )
        relative = tuple(action["relative"] or [False] * len(names))
        return cls(names, *ends, relative, limits["source"])

    def _paced(
        self, actions: np.ndarray, state: np.ndarray | None, continuing: Continuation | None
    ) -> np.ndarray:
        paced = actions.astype(np.float64)
        before = np.full(actions.shape[1], np.nan)
        if state is not None:
            dims = [dim for dim, relative in enumerate(self.relative) if relative and dim < len(state)]
            before[dims] = np.asarray(state, dtype=np.float64)[dims]
        delay = 0 if continuing is None else continuing.delay
        for step in range(len(paced)):
            known = np.isfinite(before)
            low = np.where(known, before - self.step, -np.inf)
            high = np.where(known, before + self.step, np.inf)
            paced[step] = np.clip(paced[step], low, high)
            if continuing is not None and delay and step <= delay:  # may be the first that is executed
                old = continuing.actions[max(step - 1, 0)].astype(np.float64)
                paced[step] = np.clip(paced[step], old - self.step, old + self.step)
            before = paced[step]
        # Rounding to float32 must not count as a change.
        return np.where(
            np.abs(paced - actions) > 1e-6 * np.maximum(1.0, np.abs(paced)), paced, actions
        ).astype(np.float32)


@dataclass(frozen=True)
class StateLimits:
    """Which states are acted on; without limits, any finite one.

    Attributes:
        names: What the dimensions are called.
        low: `[d]`, -inf for none.
        high: `[d]`, inf for none.
        source: Where they come from, in words.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    source: str

    def check(self, state: np.ndarray, field: str) -> None:
        """Raise where a state cannot be acted on.

        Args:
            state: `[d]`.
            field: What the client calls it.

        Raises:
            ObservationError: A value lies outside the limits.
        """
        outside = (state < self.low) | (state > self.high)
        if not outside.any():
            return
        told = [
            f"{float(state[dim]):g} in dimension {dim} ('{self.names[dim]}'), which is acted on from "
            f"{self.low[dim]:g} to {self.high[dim]:g}"
            for dim in np.flatnonzero(outside)[:3]
        ]
        more = f", and {int(outside.sum()) - 3} more" if outside.sum() > 3 else ""
        raise ObservationError(f"{field} holds {'; '.join(told)}{more} (limits: {self.source}).")

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the metadata frame; None stands for none."""
        return {"low": _plain(self.low), "high": _plain(self.high), "source": self.source}


@dataclass(frozen=True)
class Limits:
    """What a server holds its robot to.

    Attributes:
        action: Every answer is within these.
        state: A state outside these is refused.
    """

    action: ActionLimits
    state: StateLimits

    def to_json(self) -> dict[str, Mapping[str, Any]]:
        """Return plain values for the metadata frame."""
        return {"action": self.action.to_json(), "state": self.state.to_json()}


def _inwards(limit: np.ndarray, direction: int) -> np.ndarray:
    """Return limits as float32 that do not exceed those in float64."""
    made = limit.astype(np.float32)
    over = made < limit if direction > 0 else made > limit
    return np.where(over, np.nextafter(made, np.float32(direction * np.inf)), made)


def _filled(values: list[float | None], absent: float) -> np.ndarray:
    return np.array([absent if value is None else value for value in values], dtype=np.float64)


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
