"""The robot's contract: what a server says in its metadata frame, for a client to check before it moves.

    contract(robot_policy, checkpoint="me/cup", limits=limits, keys=key_map.keys, p50=0.031, p95=0.034)

Plain values alone (text, numbers, truth values, None, lists, dictionaries), as msgpack and JSON hold them.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from vla_client.continuation import PICKS

from vla.interface import VectorInterface
from vla.policies.robot import RobotPolicy
from vla.serve.limits.file import group_ranges, shape_of
from vla.serve.limits.held import Limits
from vla.transforms.actions import DeltaActions
from vla.transforms.cameras import camera_slots
from vla.transforms.normalize import Normalize
from vla.transforms.robot_file import Vector
from vla.transforms.robots import Robot

PROTOCOL = 1
"""Version of what lies under the metadata's key `vla`; a client refuses one that it does not know."""


def contract(
    robot_policy: RobotPolicy,
    *,
    checkpoint: str,
    revision: str | None = None,
    source: Mapping[str, Any] | None = None,
    robot: Robot | None = None,
    limits: Limits | None = None,
    keys: Mapping[str, Any] | None = None,
    offers: Sequence[str] | None = None,
    max_prefix: int | None = None,
    level: str | None = None,
    p50: float | None = None,
    p95: float | None = None,
    resettable: bool = True,
) -> dict[str, Any]:
    """Return what stands under the metadata's key `vla`.

    Args:
        robot_policy: The policy that is served.
        checkpoint: What it was opened by.
        revision: Commit on the hub, where there is one.
        source: `vla.serve.source.source_of`: which checkpoint exactly that is, and how it was opened.
        robot: The robot's file: it knows units, ranges and frequency where the checkpoint does not.
        limits: What actions and states are held to.
        keys: `KeyMap.keys`.
        offers: Ways in which a chunk may continue another; None: the policy's own ("guided", "prefix").
        max_prefix: Longest prefix that is taken, steps; None: what the policy was trained for.
        level: Level of sampling; the last chunk's where not given.
        p50: Median latency of a chunk as measured, seconds; None: not measured.
        p95: 95th percentile, seconds.
        resettable: Whether this client can begin an episode: where it cannot and the policy has a past,
            the contract warns of it.

    Raises:
        ConfigError: Nothing says how many values the robot's state and actions have.
    """
    shape = shape_of(robot_policy, robot)
    interface = robot_policy.interface
    described = None if robot is None else robot.about
    made: dict[str, Any] = {
        "protocol": PROTOCOL,
        "version": importlib.metadata.version("vla"),
        "checkpoint": str(checkpoint),
        "revision": revision,
        "source": None if source is None else dict(source),
        "robot": {
            "name": None if robot is None else robot.name,
            "cameras": _cameras(robot_policy, robot),
            "state": _vector(shape.state, interface and interface.state, described and described.state),
            "action": {
                **_vector(shape.action, interface and interface.action, described and described.action),
                "relative": _relative(robot_policy, len(shape.action)),
            },
            "frequency": _frequency(robot_policy, robot),
            "horizon": int(robot_policy.window.executable),
        },
        "execute": int(robot_policy.policy.config.executed_steps),
        "normalisation": _normalisation(robot_policy),
        "needs_task": bool(robot_policy.needs_task),
        "past": int(robot_policy.past),
        "offers": list(robot_policy.continues_by if offers is None else offers),
        "max_prefix": int(robot_policy.max_prefix if max_prefix is None else max_prefix),
        "picks": list(PICKS),
        "probes": True,
        "level": robot_policy.last_level if level is None else str(level),
        "latency_ms": {"p50": _milliseconds(p50), "p95": _milliseconds(p95)},
        "limits": None if limits is None else limits.to_json(),
        "keys": None if keys is None else dict(keys),
    }
    if robot_policy.past and not resettable:
        made["warning"] = (
            f"This policy reads frames up to {robot_policy.past} steps before the present. A client that "
            "cannot reset has one episode for each connection, and must send every control step: connect "
            "anew for an episode."
        )
    return made


def _cameras(robot_policy: RobotPolicy, robot: Robot | None) -> dict[str, list[int] | None]:
    """Return the cameras with (height, width) in pixels as recorded, where that is known."""
    interface = robot_policy.interface
    if interface is not None:
        return {
            name: None if size is None else [int(size[0]), int(size[1])]
            for name, size in interface.cameras.items()
        }
    slots = camera_slots(robot_policy.pipeline)
    filled = slots.values() if robot is None else (slot for slot in robot.cameras if slot in slots)
    return dict.fromkeys(filled)


def _vector(
    names: Sequence[str], recorded: VectorInterface | None, described: Vector | None
) -> dict[str, Any]:
    """Return one vector's names, units and physical limits: recorded ones, else the robot file's."""
    width = len(names)
    units: list[str | None] = [None] * width
    low: list[float | None] = [None] * width
    high: list[float | None] = [None] * width
    if described is not None and len(described.names) == width:
        units = [group.unit for group in described.dimensions for _ in group.names]
        pairs = group_ranges(described)
        low = [None if pair is None else float(pair[0]) for pair in pairs]
        high = [None if pair is None else float(pair[1]) for pair in pairs]
    if recorded is not None and len(recorded) == width:
        units = [own or other for own, other in zip(recorded.units, units, strict=True)]
        low = [other if own is None else float(own) for own, other in zip(recorded.low, low, strict=True)]
        high = [other if own is None else float(own) for own, other in zip(recorded.high, high, strict=True)]
    return {"names": list(names), "units": units, "low": low, "high": high}


def _relative(robot_policy: RobotPolicy, width: int) -> list[bool] | None:
    delta = robot_policy.pipeline.find(DeltaActions)
    if delta is None or not any(delta.mask):
        return None
    return [dim < len(delta.mask) and bool(delta.mask[dim]) for dim in range(width)]


def _frequency(robot_policy: RobotPolicy, robot: Robot | None) -> float | None:
    recorded = robot_policy.interface
    if recorded is not None and recorded.frequency is not None:
        return float(recorded.frequency)
    return None if robot is None else float(robot.frequency)


def _normalisation(robot_policy: RobotPolicy) -> dict[str, str] | None:
    normalize = robot_policy.pipeline.find(Normalize)
    if normalize is None:
        return None
    return {**normalize.modes, "formula": normalize.formula.name}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None or not np.isfinite(seconds) else float(seconds) * 1000
