"""An observation with the state's columns one by one is told to join them, by every way to act."""

import numpy as np
import pytest
import torch

from tests.policies.test_observation import PIXELS, STATE, TOP, VALUES, policy, refused, robot, without

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
