import numpy as np
import pytest

from vla.data import LeRobotDataset
from vla.demo.demonstrations import record_demonstrations
from vla.errors import DatasetError
from vla.eval.envs.detour import CAMERA, INSTRUCTIONS, STATE, DetourEnv
from vla.eval.envs.detour_embodiment import SECOND


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demonstrations"
    return folder, record_demonstrations(folder, episodes=20, seed=7)


def test_every_instruction_gets_its_share_and_the_open_one_both_sides(recorded):
    folder, frames = recorded
    dataset = LeRobotDataset(folder, action_horizon=1)
    assert len(dataset) == frames
    assert len(dataset.episodes) == 20
    first = [dataset[part.start] for part in dataset.episode_slices]
    told = [item["task"] for item in first]
    assert told == [INSTRUCTIONS[side] for side in (None, "left", None, "right")] * 5
    said = {task: {item["response"] for item in first if item["task"] == task} for task in set(told)}
    assert said == {
        INSTRUCTIONS["left"]: {"left"},
        INSTRUCTIONS["right"]: {"right"},
        INSTRUCTIONS[None]: {"left", "right"},
    }


def test_recorded_actions_lead_round_the_cup_on_the_side_that_is_said(recorded):
    """Replayed in the environment they reach the target, and states and images are those recorded."""
    dataset = LeRobotDataset(recorded[0], action_horizon=1)
    for episode, part in enumerate(dataset.episode_slices):
        env = DetourEnv()
        observation, info = env.reset(seed=7 + episode)
        for index in range(part.start, part.stop):
            item = dataset[index]
            np.testing.assert_allclose(item[STATE], observation[STATE], atol=1e-6)
            image = item[CAMERA].numpy().transpose(1, 2, 0).astype(int)
            assert np.abs(image - observation[CAMERA]).mean() < 8, "h264 is lossy, but not that lossy"
            observation, *_, info = env.step(item["action"][0].numpy())
        assert info["success"]
        assert info["side_passed"] == item["response"]


def test_the_second_robots_actions_lead_there_too(tmp_path):
    record_demonstrations(tmp_path / "set", episodes=6, seed=3, embodiment=SECOND)
    dataset = LeRobotDataset(tmp_path / "set", action_horizon=1)
    assert dataset.info.fps == SECOND.fps
    for episode, part in enumerate(dataset.episode_slices):
        env = DetourEnv(embodiment=SECOND)
        observation, info = env.reset(seed=3 + episode)
        for index in range(part.start, part.stop):
            np.testing.assert_allclose(dataset[index][STATE], observation[STATE], rtol=1e-5)
            observation, *_, info = env.step(dataset[index]["action"][0].numpy())
        assert info["success"]


def test_the_seed_decides_everything(recorded, tmp_path):
    record_demonstrations(tmp_path / "again", episodes=20, seed=7)
    one, two = (
        LeRobotDataset(f, action_horizon=1).low_dim("action") for f in (recorded[0], tmp_path / "again")
    )
    np.testing.assert_array_equal(one, two)


def test_nothing_is_overwritten(recorded):
    with pytest.raises(DatasetError, match="exists already"):
        record_demonstrations(recorded[0], episodes=1, seed=0)
