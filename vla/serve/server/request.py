"""A request: what a robot measured, and what it asks for besides, under keys that start with `vla/`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from vla_client.continuation import PICKS, Continuation

from vla.errors import did_you_mean
from vla.policies.observation import check_noise
from vla.serve.server.faults import RequestError

RESERVED = "vla/"
"""What the keys of this library start with; a robot's own keys never do."""

MAX_SAMPLES = 64
"""Chunks that one request may draw."""

MAX_STEPS = 100
"""Steps of sampling that one request may ask for."""

KEYS = (
    "vla/reset",
    "vla/observe",
    "vla/seed",
    "vla/noise",
    "vla/continue",
    "vla/samples",
    "vla/pick",
    "vla/num_steps",
    "vla/text",
    "vla/timestamp",
    "vla/probe",
)

_CONTINUE = ("actions", "delay", "method", "schedule", "max_weight")


@dataclass(frozen=True, eq=False)
class Request:
    """One request, checked as far as it can be without the policy.

    Args:
        measured: What the robot measured, by its own keys; empty where only `reset` was asked.
        reset: Whether a new session begins.
        observe: Whether the frame is only noted, and no chunk is asked for.
        seed: Seed of the noise, 0 to 2^63 - 1; None: the server chooses one.
        noise: `[a, m]` in model space, instead of a seed.
        continuing: What the chunk continues.
        samples: Chunks to draw, of which one is picked; None: the server's default.
        pick: Which of them: "medoid" or "nearest"; None: the policy's own rule.
        num_steps: Steps of sampling; None: the policy's.
        text: Whether to generate the response text.
        timestamp: Seconds of the client's clock, given back as they are.
        probe: Whether what was measured is made up, to try the server: it is answered, and not recorded.
    """

    measured: Mapping[str, Any]
    reset: bool = False
    observe: bool = False
    seed: int | None = None
    noise: np.ndarray | None = None
    continuing: Continuation | None = None
    samples: int | None = None
    pick: str | None = None
    num_steps: int | None = None
    text: bool = False
    timestamp: float | None = None
    probe: bool = False

    @classmethod
    def of(cls, message: Any) -> "Request":
        """Read a decoded message.

        Raises:
            RequestError: It is not a map, or a `vla/` key is unknown or holds what it cannot.
            ShapeError: `vla/noise`, or the actions of `vla/continue`, are not what they should be.
            ConfigError: Something else in `vla/continue` is not.
        """
        if not isinstance(message, Mapping):
            raise RequestError(
                f"A request is a map from names to what was measured, got a {type(message).__name__}."
            )
        asked = {key: message[key] for key in message if _is_ours(key)}
        for key in asked:
            if key not in KEYS:
                raise RequestError(f"There is no key '{key}' of a request.{did_you_mean(key, KEYS)}")
        made = cls(
            measured={key: value for key, value in message.items() if key not in asked},
            reset=_flag(asked, "vla/reset"),
            observe=_flag(asked, "vla/observe"),
            text=_flag(asked, "vla/text"),
            probe=_flag(asked, "vla/probe"),
            seed=_whole(asked, "vla/seed", 0, 2**63 - 1),
            samples=_whole(asked, "vla/samples", 1, MAX_SAMPLES),
            pick=_pick(asked.get("vla/pick")),
            num_steps=_whole(asked, "vla/num_steps", 1, MAX_STEPS),
            noise=None if asked.get("vla/noise") is None else check_noise(asked["vla/noise"], "a m"),
            continuing=_continuation(asked.get("vla/continue")),
            timestamp=_seconds(asked.get("vla/timestamp")),
        )
        made._check_together()
        return made

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured: a reset alone."""
        return not self.measured

    def _check_together(self) -> None:
        if self.noise is not None and self.seed is not None:
            raise RequestError("vla/noise and vla/seed both say where sampling starts: leave out one.")
        if self.noise is not None and (self.samples or 1) > 1:
            raise RequestError("vla/noise starts one chunk: several vla/samples are drawn from a seed.")
        if self.pick == "nearest" and (self.continuing is None or not len(self.continuing.actions)):
            raise RequestError(
                "vla/pick 'nearest' compares chunks with the rest of the one that is executed, and there is "
                "no vla/continue, or its actions are empty: give it, or ask for 'medoid'."
            )
        if self.observe and (self.continuing is not None or self.text or self.noise is not None):
            raise RequestError(
                "vla/observe only notes a frame, so vla/continue, vla/text and vla/noise have no meaning "
                "with it: leave them out."
            )
        if self.is_empty and not self.reset:
            raise RequestError("The request is empty: it holds nothing that was measured.")


def is_ours(message: Any) -> bool:
    """Return whether a message comes from a client that knows the keys of this library."""
    return isinstance(message, Mapping) and any(map(_is_ours, message))


def _is_ours(key: Any) -> bool:
    return isinstance(key, str) and key.startswith(RESERVED)


def _flag(asked: Mapping[str, Any], key: str) -> bool:
    value = asked.get(key, False)
    if isinstance(value, np.bool_):
        value = bool(value)
    if not isinstance(value, bool):
        raise RequestError(f"{key} must be true or false, got {_shown(value)}.")
    return value


def _whole(asked: Mapping[str, Any], key: str, low: int, high: int) -> int | None:
    value = asked.get(key)
    if value is None:
        return None
    if isinstance(value, np.integer):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{key} must be a whole number from {low} to {high}, got {_shown(value)}.")
    return value


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, np.integer | np.floating):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"vla/timestamp must be a number of seconds, got {_shown(value)}.")
    return float(value)


def _pick(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or value not in PICKS):
        hint = did_you_mean(value, PICKS) if isinstance(value, str) else ""
        raise RequestError(f"vla/pick must be one of {', '.join(PICKS)}, got {_shown(value)}.{hint}")
    return value


def _continuation(value: Any) -> Continuation | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise RequestError(f"vla/continue must be a map of {', '.join(_CONTINUE)}, got {_shown(value)}.")
    for key in value:
        if key not in _CONTINUE:
            hint = did_you_mean(key, _CONTINUE) if isinstance(key, str) else ""
            raise RequestError(f"vla/continue has no {_shown(key)}.{hint}")
    for key in ("actions", "delay"):
        if key not in value:
            raise RequestError(f"vla/continue lacks {key}.")
    return Continuation(**value)


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
