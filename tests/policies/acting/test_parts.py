"""What an observation brings that was not meant so is told, by every way to act."""

import logging

import numpy as np
import pytest
import torch

from tests.policies.conftest import make_robot_policy
from tests.policies.test_observation import PIXELS, STATE, TOP, VALUES, policy, refused, robot, without
from tests.policies.test_robot import make_observation
from vla.interface import RobotInterface, VectorInterface
from vla.policies.robot import RobotPolicy
from vla.transforms.base import Pipeline

__all__ = ["policy", "robot"]  # fixtures


@pytest.mark.parametrize(
    "parts",
    [
        {f"{STATE}.arm": VALUES[:2], f"{STATE}.grip": VALUES[2:]},
        {f"{STATE}.arm": VALUES[:2], f"{STATE}.grip": VALUES[2], "effort": VALUES},
        {"observation/state/arm": np.array(VALUES[:2])},
        {"qpos": torch.tensor(VALUES[:2]), "gripper": np.float32(2)},
    ],
)
def test_parts_of_the_state_are_to_be_joined_not_renamed(robot, parts):
    told = refused(robot, without(STATE) | parts)
    named = " and ".join(key for key in parts if key != "effort")
    what = "are parts" if " and " in named else "is a part"
    assert f"If {named} {what} of the state, join the columns that it was trained on, in their order" in told
    assert told.endswith("(shoulder, elbow, gripper), as 'observation.state'.")
    told = refused(robot, {TOP: PIXELS, "prompt": "left"} | parts)
    assert told.endswith("as 'observation.state'. Did you mean 'task' by 'prompt'?")


def test_a_column_as_wide_as_the_state_is_renamed(robot):
    told = refused(robot, without(STATE) | {f"{STATE}.arm": VALUES})
    assert "join" not in told
    assert told.endswith("Did you mean 'observation.state' by 'observation.state.arm'?")


def test_a_camera_that_this_robot_was_not_trained_with_is_told(caplog):
    """It changes the actions, through a slot that was masked in all of its training."""
    seen = make_observation()
    cameras = [key.removeprefix("observation.images.") for key in seen if "images" in key]
    assert len(cameras) > 1
    names = VectorInterface(("x", "y", "z")), VectorInterface(("dx", "dy"))
    for trained, told in ((cameras, 0), (cameras[:1], len(cameras) - 1)):
        made = make_robot_policy()
        made.pipeline = Pipeline(made.pipeline.transforms, RobotInterface(dict.fromkeys(trained), *names))
        robot = RobotPolicy(made)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            robot.infer(seen)
            robot.infer(seen)
        lines = [
            one.getMessage() for one in caplog.records if "this robot was trained with" in one.getMessage()
        ]
        assert len(lines) == told
    assert f"'observation.images.{cameras[1]}' is read" in lines[0]
