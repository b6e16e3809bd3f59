"""What a server answers: read, matched to its request, and checked before a robot executes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_client.coding import unpack
from vla_client.contract import Contract
from vla_client.errors import ActionError, CodingError, ObservationError, ServerError, VlaError


def read_answer(reply: bytes, stamp: float | None) -> dict[str, Any]:
    """Return a reply as a map.

    Args:
        reply: A binary frame.
        stamp: The time stamp of the request, which the answer has as well where it has any.

    Raises:
        ServerError: It cannot be read, answers another request, or tells an error.
        ObservationError: It tells that the observation cannot be acted on.
    """
    try:
        answer, _ = unpack(reply)
    except CodingError as error:
        raise ServerError(f"The server's answer cannot be read: {error}") from error
    if not isinstance(answer, dict):
        raise ServerError(f"The server's answer must be a map, got a {type(answer).__name__}.")
    if (told := answer.get("vla/error")) is not None:
        raise _told(told)
    ours = answer.get("vla")
    echoed = ours.get("timestamp") if isinstance(ours, dict) else None
    if stamp is not None and echoed is not None and echoed != stamp:
        raise ServerError(
            f"The server answered another request: its timestamp is {echoed!r:.40}, not {stamp}."
        )
    return answer


def executable(answer: dict[str, Any], robot: Contract | None) -> dict[str, Any]:
    """Return an answer with `"actions"` `[a, d]` that can be executed, float32.

    Raises:
        ServerError: It has no actions, or something else in their place.
        ActionError: They are not finite, or have another width than the contract says.
    """
    name = ((robot and robot.keys) or {}).get("actions", "actions")
    given = answer.get("actions", answer.get(name) if isinstance(name, str) else None)
    if given is None:
        raise ServerError(f"The server's answer has no actions, only {sorted(answer)}.")
    try:
        actions = np.array(given, np.float32)  # a copy: those of the message cannot be written to
    except (TypeError, ValueError) as error:
        raise ServerError(f"The server's actions are not numbers but a {type(given).__name__}.") from error
    if actions.ndim != 2 or not len(actions):
        raise ActionError(f"A chunk must have shape [a, d], the server's has {list(actions.shape)}.")
    if not np.isfinite(actions).all():
        step, dim = np.argwhere(~np.isfinite(actions))[0]
        raise ActionError(f"The server's chunk has {actions[step, dim]} at step {step}, dimension {dim}.")
    names = () if robot is None else robot.action.names
    if names and actions.shape[1] != len(names):
        raise ActionError(
            f"An action of this robot has {len(names)} values ({', '.join(names)}), the server's has "
            f"{actions.shape[1]}."
        )
    return {**answer, "actions": actions}


def server_ms(answer: Mapping[str, Any]) -> float | None:
    """Return the milliseconds that the server says it took; None where it does not say."""
    timing = answer.get("server_timing")
    if not isinstance(timing, Mapping):
        return None
    parts = [timing.get(key) for key in ("infer_ms", "queue_ms")]
    known = [float(part) for part in parts if isinstance(part, (int, float)) and math.isfinite(part)]
    return sum(known) if known else None


def _told(told: Any) -> VlaError:
    """Return the error that a vla server tells."""
    kind = told.get("kind") if isinstance(told, Mapping) else None
    message = told.get("message") if isinstance(told, Mapping) else None
    if not isinstance(kind, str) or not isinstance(message, str):
        return ServerError(f"The server answered with an error that cannot be read: {told!r:.80}.")
    if kind == "observation":
        return ObservationError(message)
    return ServerError(message, kind=kind)
