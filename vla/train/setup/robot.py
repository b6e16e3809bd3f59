"""A recipe's robot (`data.robot`): what it supplies to the recipe, and whether it fits the dataset."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla.data.dataset import LeRobotDataset
from vla.errors import ConfigError, did_you_mean
from vla.train.checkpoint.same_run import OtherRunError
from vla.train.recipe import DataSection, Recipe
from vla.transforms.actions import check_delta_places
from vla.transforms.base import Pipeline, Transform
from vla.transforms.robots import Robot, load_robot

logger = logging.getLogger(__name__)


def with_robot(recipe: Recipe) -> Recipe:
    """Return the recipe with what its robot file supplies written out; the recipe's own values outrank it.

    Cameras, wrist cameras, delta mask and the columns of state and actions are supplied; the robot's
    transforms are not written out, since they follow from the file. Doing it twice changes nothing.

    Raises:
        ConfigError: The robot file is missing or wrong, or the recipe asks for what the robot has not got.
    """
    if recipe.data.robot is None or recipe.data.mixture is not None:  # each member of a mixture has its own
        return recipe
    data, robot = recipe.data, load_robot(recipe.data.robot)
    supplied: dict[str, Any] = {}
    if data.cameras is None:
        supplied["cameras"] = robot.cameras
    for slot in data.cameras or ():
        if slot not in robot.cameras:
            absent = " (the robot has no camera for it)" if slot in robot.absent_cameras else ""
            raise ConfigError(
                f"data.cameras fills the slot '{slot}', but {robot.path} fills {', '.join(robot.cameras)}"
                f"{absent}.{did_you_mean(slot, robot.cameras)}"
            )
    slots = data.cameras or robot.cameras
    if data.wrist_cameras is None:
        supplied["wrist_cameras"] = tuple(slot for slot in robot.wrist_cameras if slot in slots)
    elif unknown := set(data.wrist_cameras) - set(slots):
        raise ConfigError(f"data.wrist_cameras {sorted(unknown)} are not among the cameras {list(slots)}.")
    if data.delta_mask is None:
        supplied["delta_mask"] = robot.delta_mask
    elif len(data.delta_mask) > robot.action_dim:
        raise ConfigError(
            f"data.delta_mask has {len(data.delta_mask)} flags, but {robot.name} ({robot.path}) has "
            f"{robot.action_dim} action dimensions: {', '.join(robot.action_names)}."
        )
    for key, column in (("state_key", robot.state_key), ("action_key", robot.action_key)):
        if key not in data.model_fields_set:
            supplied[key] = column
    return recipe.model_copy(update={"data": data.model_copy(update=supplied)})


def robot_of(data: DataSection, dataset: LeRobotDataset) -> Robot | None:
    """Return the recipe's robot, checked against the dataset (`check_robot`); None where it names none."""
    if data.robot is None:
        return None
    robot = load_robot(data.robot)
    check_robot(robot, dataset, data.delta_mask)
    return robot


def check_same_robot(checkpoint: Path, pipeline: Pipeline | None, data: DataSection) -> None:
    """Check that the robot file says what it said when a checkpoint was trained, wherever it lies now.

    Raises:
        OtherRunError: Its signs or scales are others than those of the checkpoint's pipeline.
    """
    if data.robot is None or pipeline is None:
        return
    now = [_described(one) for one in load_robot(data.robot).transforms()]
    if [_described(one) for one in pipeline.transforms[: len(now)]] != now:
        raise OtherRunError(
            f"{checkpoint} was trained with other signs or scales than {data.robot} says: the file has "
            "changed since, or is another robot's."
        )


def _described(transform: Transform) -> str:
    return json.dumps({"type": transform.name, **transform.to_json()}, sort_keys=True)


def check_robot(robot: Robot, dataset: LeRobotDataset, delta_mask: Sequence[bool] | None = None) -> None:
    """Check that a dataset's state and actions are a robot's.

    A frequency that differs from the dataset's is logged as a warning: a chunk then lasts another time.
    So are actions that are learned relative to a state of another kind or unit.

    Args:
        robot: The robot.
        dataset: The dataset.
        delta_mask: Which actions are learned relative to the state; None: as the robot's file says.

    Raises:
        ConfigError: They have other dimensions, or the same in another order, or a delta takes another
            dimension's state.
    """
    if delta_mask is None:
        delta_mask = robot.delta_mask or ()
    check_delta_places(delta_mask, robot.state_names, robot.action_names, f"names in {robot.path}")
    if unlike := robot.unlike_deltas(delta_mask):
        logger.warning(
            "%s: actions are learned relative to a state that measures something else: %s. Leave them out of "
            "the delta, or say one kind and unit in both where they are the same",
            *(robot.path, "; ".join(unlike)),
        )
    for what, feature, names, width in (
        ("state", dataset.state_feature, robot.state_names, dataset.state_dim),
        ("action", dataset.action_feature, robot.action_names, dataset.action_dim),
    ):
        if width != len(names):
            raise ConfigError(
                f"{robot.name} ({robot.path}) has {len(names)} {what} dimensions, but the dataset's "
                f"'{feature.key}' has {width}."
            )
        recorded = feature.names
        if recorded is not None and set(recorded) == set(names) and tuple(recorded) != tuple(names):
            raise ConfigError(
                f"The dataset's '{feature.key}' has the dimensions of {robot.name} in another order: "
                f"{', '.join(recorded)}. {robot.path} says {', '.join(names)}."
            )
    if robot.frequency != dataset.info.fps:
        logger.warning(
            "%s runs at %g Hz, but the dataset was recorded at %g frames per second: a chunk lasts another "
            "time on the robot than in the data",
            robot.name,
            robot.frequency,
            dataset.info.fps,
        )
