"""What a client is given, checked before it is used or sent."""

from __future__ import annotations

import math
import operator
import ssl as tls
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vla_client.continuation import PICKS, Continuation
from vla_client.contract import Contract
from vla_client.errors import ConfigError, ShapeError, did_you_mean


def address(uri: Any, port: Any = None) -> str:
    """Return a server's address with its scheme, and with its port where one is given apart.

    Raises:
        ConfigError: It is not text, the port is not one, or the address has one already.
    """
    if not isinstance(uri, str):
        raise ConfigError(f"uri must be text such as ws://robot-server:8000, got {uri!r:.80}.")
    full = uri if "://" in uri else f"ws://{uri}"
    if port is None:
        return full
    number = whole(port, "port", 1, 65535)
    try:
        parts = urlsplit(full)
        has_port = parts.port is not None
    except ValueError as error:
        raise ConfigError(f"{uri!r} is not an address such as ws://robot-server:8000: {error}.") from error
    if has_port:
        raise ConfigError(f"{uri!r} has a port already, and port={number} is another: leave out one.")
    return parts._replace(netloc=f"{parts.netloc}:{number}").geturl()


def whole(value: Any, name: str, low: int, high: int | None = None) -> int:
    """Return a whole number of a range, or raise `ConfigError`; the server has upper bounds of its own."""
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{name} must be a whole number {bounds}, got {value!r:.80}.")
    return number


def seconds(value: Any, name: str) -> float:
    """Return seconds above 0, or raise `ConfigError`."""
    if (number := _number(value)) is None or not 0 < number < math.inf:
        raise ConfigError(f"{name} must be seconds above 0, got {value!r:.80}.")
    return number


def moment(value: Any) -> float:
    """Return a time stamp, or raise `ConfigError`."""
    if (number := _number(value)) is None or not math.isfinite(number):
        raise ConfigError(f"timestamp must be a number of seconds, got {value!r:.80}.")
    return number


def pauses(value: Any) -> tuple[float, float]:
    """Return the first and the longest pause, or raise `ConfigError`."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ConfigError(
            f"backoff must be two pauses in seconds, the first and the longest, got {value!r:.80}."
        )
    return seconds(value[0], "backoff"), seconds(value[1], "backoff")


def names(value: Any, name: str) -> tuple[str, ...]:
    """Return several names; one text is not several, though Python takes it apart letter by letter.

    Raises:
        ConfigError: It is not a list of text.
    """
    if isinstance(value, (str, bytes)):
        raise ConfigError(f"{name} must be a list of names, got the text {value!r}: write [{value!r}].")
    made: list[Any] = list(value) if isinstance(value, Iterable) else [None]
    if not all(isinstance(one, str) for one in made):
        raise ConfigError(f"{name} must be a list of names, got {value!r:.80}.")
    return tuple(made)


def settings(token: Any, coding: Any, codings: Sequence[str], expect: Any, ssl: Any) -> None:
    """Raise `ConfigError` over other arguments of a client that are not what they should be."""
    if not isinstance(coding, str) or coding not in codings:
        raise ConfigError(f"coding must be one of {', '.join(codings)}, got {coding!r:.80}.")
    if token is not None and (not isinstance(token, str) or not token.isprintable() or not token.isascii()):
        raise ConfigError(f"token must be printable ASCII text, got a {type(token).__name__} that is not.")
    if expect is not None and not isinstance(expect, Mapping):
        raise ConfigError(f"expect must map what is expected to its value, got a {type(expect).__name__}.")
    if ssl is not None and not isinstance(ssl, tls.SSLContext):
        raise ConfigError(f"ssl must be an ssl.SSLContext, got a {type(ssl).__name__}.")


def asked(
    *, continuing: Any, seed: Any, noise: Any, samples: Any, pick: Any, num_steps: Any, text: Any
) -> dict[str, Any]:
    """Return what a request asks for, by its reserved keys; without what is left to the server.

    Raises:
        ConfigError: One of them is out of its range, or two contradict each other.
        ShapeError: The noise is not numbers `[a, m]`.
    """
    if continuing is not None and not isinstance(continuing, Continuation):
        raise ConfigError(
            "continuing must be a vla_client.continuation.Continuation, such as "
            f"Continuation(actions, delay=2), got a {type(continuing).__name__}."
        )
    if not isinstance(text, (bool, np.bool_)):
        raise ConfigError(f"text must be True or False, got {text!r:.80}.")
    if seed is not None and noise is not None:
        raise ConfigError("noise and seed both say where sampling starts: leave out one.")
    made: dict[str, Any] = {
        "vla/continue": None if continuing is None else _continue(continuing),
        "vla/seed": None if seed is None else whole(seed, "seed", 0, 2**63 - 1),
        "vla/noise": None if noise is None else _noise(noise),
        "vla/samples": None if samples == 1 else whole(samples, "samples", 1),
        "vla/pick": None if pick is None else _pick(pick, continuing),
        "vla/num_steps": None if num_steps is None else whole(num_steps, "num_steps", 1),
        "vla/text": True if text else None,
    }
    return {key: value for key, value in made.items() if value is not None}


def offered(robot: Contract | None, continuing: Continuation | None, pick: str | None) -> None:
    """Raise `ConfigError` where a server does not offer what is asked; one that tells nothing is asked."""
    if robot is None:
        return
    if pick is not None and pick not in robot.picks:
        raise ConfigError(
            f"The server does not pick by '{pick}'; it offers "
            f"{', '.join(robot.picks) or 'nothing of the kind'}."
        )
    if continuing is None:
        return
    if continuing.method not in robot.offers:
        raise ConfigError(
            f"The server's policy cannot continue a chunk by '{continuing.method}'; it offers "
            f"{', '.join(robot.offers) or 'nothing of the kind'}."
        )
    if continuing.method == "prefix" and continuing.delay > robot.max_prefix:
        raise ConfigError(
            f"The server's policy has learned prefixes of at most {robot.max_prefix} steps, got a delay "
            f"of {continuing.delay}."
        )


def _pick(pick: Any, continuing: Continuation | None) -> str:
    if callable(pick):
        raise ConfigError(
            "pick is a function, and the server picks, which gets no functions: ask it for one of "
            f"{', '.join(PICKS)}. A policy in the same process takes functions."
        )
    if not isinstance(pick, str) or pick not in PICKS:
        hint = did_you_mean(pick, PICKS) if isinstance(pick, str) else ""
        raise ConfigError(f"pick must be one of {', '.join(PICKS)}, got {pick!r:.80}.{hint}")
    if pick == "nearest" and (continuing is None or not len(continuing.actions)):
        raise ConfigError(
            "pick='nearest' compares chunks with the rest of the one that is executed, and there is no "
            "continuing, or it is empty: give it, or pick='medoid'."
        )
    return pick


def _noise(value: Any) -> np.ndarray:
    try:
        noise = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"noise must be numbers [a, m], got a {type(value).__name__}: {error}.") from error
    if noise.ndim != 2 or noise.dtype.kind not in "fiu":
        raise ShapeError(f"noise must be numbers [a, m], got {noise.dtype} {list(noise.shape)}.")
    if not np.isfinite(noise).all():
        raise ConfigError("noise must be finite.")
    return noise


def _continue(continuing: Continuation) -> dict[str, Any]:
    return {
        "actions": continuing.actions,
        "delay": continuing.delay,
        "method": continuing.method,
        "schedule": continuing.schedule,
        "max_weight": continuing.max_weight,
    }


def _number(value: Any) -> float | None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
