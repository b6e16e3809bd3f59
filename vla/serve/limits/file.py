"""Which limits a server applies: the dataset's range, the robot file, a file of the user's, in this order.

    widen: 0.1                        # room at either end, as a share of the dataset's range; null: unlimited
    action:
      range: {gripper: [0, 1], base: null}    # instead of the dataset's; null: none
      step: {shoulder: 0.05}          # largest change per control step; a number: of every dimension
    state:
      widen: 0.5                      # refuse states farther outside the dataset's range; left out: none
      range: {gripper: [-0.1, 1.1]}   # refuse states outside

Dimensions are called as in the metadata frame; `vla info` prints the names too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vla.errors import ConfigError, did_you_mean
from vla.paths import expanded
from vla.plain_yaml import load_yaml
from vla.policies.robot import RobotPolicy
from vla.serve.limits.held import ActionLimits, Limits, StateLimits
from vla.serve.limits.ranges import Range, dataset_ranges, unlimited
from vla.transforms.actions import DeltaActions
from vla.transforms.robot_file import Vector
from vla.transforms.robots import Robot

WIDEN = 0.1
"""Room at either end of the dataset's range, as a share of it."""


@dataclass(frozen=True)
class Shape:
    """How many values a robot's state and actions have, and what they are called."""

    state: tuple[str, ...]
    action: tuple[str, ...]


def limits_of(
    robot_policy: RobotPolicy,
    robot: Robot | None = None,
    overrides: Path | str | Mapping[str, Any] | None = None,
) -> Limits:
    """Return the limits for a policy's robot.

    Actions: the dataset's range widened by 10 %; where the robot file gives a dimension's `range`, that, and
    all within its `execution.clip`; where the user's file says something, that. States: no limits unless the
    user's file gives some.

    Args:
        robot_policy: The policy, with its statistics.
        robot: Its robot's file.
        overrides: The user's file (YAML or JSON, see the module), or its content.

    Raises:
        ConfigError: The file is missing, says something unknown, a limit is not one, or a range lies outside
            the dataset's.
    """
    where, values = _read(overrides)
    shape = shape_of(robot_policy, robot)
    states, actions = seen = dataset_ranges(robot_policy.pipeline, len(shape.state), len(shape.action))
    widen = values.get("widen", WIDEN)
    if widen is None:
        actions = unlimited(len(shape.action), "the user lifts the dataset's range")
    else:
        actions = actions.widened(_share(widen, f"{where}: widen"))
    if robot is not None:
        actions = _of_robot(actions, robot)
    own = _section(values, "action", ("range", "step"), where)
    actions = _with(actions, own.get("range", {}), shape.action, f"{where}: action.range")
    of_state = _section(values, "state", ("range", "widen"), where)
    if of_state.get("widen") is None:
        states = unlimited(len(shape.state), "states are not limited")
    else:
        states = states.widened(_share(of_state["widen"], f"{where}: state.widen"))
    states = _with(states, of_state.get("range", {}), shape.state, f"{where}: state.range")
    _overlap(states, seen[0], shape.state, "state", where)
    _overlap(actions, seen[1], shape.action, "action", where)
    delta = robot_policy.pipeline.find(DeltaActions)
    mask = () if delta is None else delta.mask
    relative = tuple(dim < len(mask) and mask[dim] for dim in range(len(shape.action)))
    step = _steps(own.get("step"), shape.action, f"{where}: action.step")
    return Limits(
        ActionLimits(shape.action, actions.low, actions.high, step, relative, actions.source),
        StateLimits(shape.state, states.low, states.high, states.source),
    )


def shape_of(robot_policy: RobotPolicy, robot: Robot | None = None) -> Shape:
    """Return the names of a robot's state and action dimensions: recorded, the robot file's, or counted.

    Raises:
        ConfigError: Nothing says how many there are, or the file says something else than the checkpoint.
    """
    interface, statistics = robot_policy.interface, robot_policy.pipeline.statistics
    names = []
    for feature, recorded, described in (
        ("state", interface and interface.state_names, robot and robot.state_names),
        ("actions", interface and interface.action_names, robot and robot.action_names),
    ):
        counted: tuple[str, ...] = ()
        if statistics is not None and feature in statistics.features:
            stem = feature.removesuffix("s")
            counted = tuple(f"{stem}_{dim}" for dim in range(statistics.features[feature].width))
        own = recorded or counted
        if robot and described and own and len(own) != len(described):
            raise ConfigError(
                f"{robot.path} describes {feature} of {len(described)} values, the "
                f"checkpoint's are of {len(own)}: it is of another robot."
            )
        found = recorded or described or counted
        if not found:
            raise ConfigError(
                f"The checkpoint does not say how many values its robot's {feature} have, so that none can "
                "be checked: give the robot's file."
            )
        names.append(tuple(found))
    return Shape(*names)


def _read(overrides: Path | str | Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any]]:
    if overrides is None:
        return "limits", {}
    if isinstance(overrides, Mapping):
        where, values = "limits", overrides
    else:
        path = expanded(overrides)
        where = str(path)
        try:
            values = load_yaml(path.read_text(encoding="utf-8"))  # JSON is YAML
        except FileNotFoundError as error:
            raise ConfigError(f"There is no file of limits {path}.") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"The limits {path} cannot be read: {' '.join(str(error).split())}.") from error
    _known(values, ("widen", "action", "state"), where)
    return where, values


def _known(values: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a mapping with the keys {', '.join(known)}, got {values!r}.")
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'.{did_you_mean(str(key), known)}")


def _section(values: Mapping[str, Any], name: str, known: Sequence[str], where: str) -> Mapping[str, Any]:
    section = values.get(name, {})
    _known(section, known, f"{where}: {name}")
    return section


def _share(value: Any, what: str) -> float:
    number = _number(value, what)
    if number < 0:
        raise ConfigError(f"{what} must be a share of the range of at least 0, got {value!r}.")
    return number


def _number(value: Any, what: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ConfigError(f"{what} must be a finite number, got {value!r}.")
    return float(value)


def _of_robot(actions: Range, robot: Robot) -> Range:
    """Return the range with what the robot file says of single dimensions, within its clip."""
    low, high, source = actions.low.copy(), actions.high.copy(), actions.source
    for dim, pair in enumerate(group_ranges(robot.about.action)):
        if pair is not None:
            low[dim], high[dim] = pair
            source = f"{actions.source}; where {robot.path.name} gives a range, that"
    if robot.execution.clip is not None:
        low, high = np.clip(low, *robot.execution.clip), np.clip(high, *robot.execution.clip)
        source = f"{source}; within the clip of {robot.path.name}"
    return Range(low, high, source)


def group_ranges(vector: Vector) -> list[tuple[float, float] | None]:
    """Return what a robot file gives as the range of each dimension."""
    return [group.range for group in vector.dimensions for _ in group.names]


def _with(given: Range, pairs: Any, names: Sequence[str], what: str) -> Range:
    """Return a range with the user's own in some dimensions."""
    if not isinstance(pairs, Mapping):
        raise ConfigError(f"{what} must map dimensions to [low, high] or null, got {pairs!r}.")
    low, high = given.low.copy(), given.high.copy()
    for name, pair in pairs.items():
        dim = _dimension(name, names, what)
        low[dim], high[dim] = -np.inf, np.inf
        if pair is None:
            continue
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ConfigError(f"{what}.{name} must be [low, high] or null, got {pair!r}.")
        low[dim], high[dim] = (_number(end, f"{what}.{name}") for end in pair)
        if low[dim] >= high[dim]:
            raise ConfigError(f"{what}.{name} must be the lower and then the upper limit, got {list(pair)}.")
    source = f"{given.source}; {', '.join(pairs)} as the user says" if pairs else given.source
    return Range(low, high, source)


def _overlap(limits: Range, seen: Range, names: Sequence[str], what: str, where: str) -> None:
    """Check that in no dimension all values of the dataset lie outside the limits."""
    for dim, name in enumerate(names):
        if limits.low[dim] > seen.high[dim] or limits.high[dim] < seen.low[dim]:
            allowed, had = (f"[{one.low[dim]:.6g}, {one.high[dim]:.6g}]" for one in (limits, seen))
            raise ConfigError(
                f"{where}: the limits of {what} '{name}' are {allowed}, and the policy learned from values "
                f"in {had} ({seen.source}), all of which lie outside: see whether units, sign and "
                f"dimension are the same. The limits come from: {limits.source}."
            )


def _steps(value: Any, names: Sequence[str], what: str) -> np.ndarray:
    step = np.full(len(names), np.inf)
    given = value if isinstance(value, Mapping) else {} if value is None else dict.fromkeys(names, value)
    for name, change in given.items():
        if change is None:
            continue
        number = _number(change, f"{what}.{name}")
        if number <= 0:
            raise ConfigError(f"{what}.{name} must be a change above 0, got {change!r}.")
        step[_dimension(name, names, what)] = number
    return step


def _dimension(name: Any, names: Sequence[str], what: str) -> int:
    if name not in names:
        raise ConfigError(
            f"{what}: there is no dimension '{name}', only {', '.join(names)}."
            f"{did_you_mean(str(name), names)}"
        )
    return names.index(name)
