"""A recording of an expert is its episodes, whatever number of processes made it, and can be replayed."""

import json

import numpy as np
import pytest

from vla.data.dataset import LeRobotDataset
from vla.errors import ConfigError, DatasetError
from vla.eval.envs import DETOUR, DETOUR_FAST_ABSOLUTE
from vla.eval.envs.detour import CAMERA, STATE, DetourEnv
from vla.eval.playing import Disturbance
from vla.eval.recording import SIMULATION_FILE, record, scene_of
from vla.eval.replay import replay
from vla.eval.scene import Scene

CONDITIONS = [{"side": "left"}, {"side": None}]
SCENE = Scene(DETOUR, {"size": 32})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "plain"
    return folder, record(SCENE, folder, 2, 5, conditions=CONDITIONS, workers=2)


def test_it_is_the_expert_s_episodes(recorded):
    folder, made = recorded
    data = LeRobotDataset(folder, action_horizon=1)
    assert (made.episodes, made.frames, made.failed) == (4, len(data), {})
    env = DetourEnv(size=32)
    for place, (seed, options) in enumerate([(5, CONDITIONS[0]), (6, CONDITIONS[0]), (5, CONDITIONS[1])]):
        rows = data.episode_slices[place]
        observation, _ = env.reset(seed=seed, options=options)
        for row in range(rows.start, rows.stop):
            item = data[row]
            np.testing.assert_array_equal(item[CAMERA].permute(1, 2, 0).numpy(), observation[CAMERA])
            np.testing.assert_array_equal(item["observation.state"].numpy(), observation[STATE])
            assert (item["seed"].item(), json.loads(item["reset_options"])) == (seed, options)
            observation, *_, info = env.step(item["action"][0].numpy())
        assert info["success"]
        assert item["task"] == info["instruction"]


def test_replaying_succeeds_and_is_the_same(recorded):
    for workers in (0, 1):
        made = replay(recorded[0], workers=workers)
        assert (made.successes, len(made.episodes), made.scene) == (4, 4, SCENE)
        assert all((one.state, one.image, one.ended_early) == (0.0, 0.0, False) for one in made.episodes)
    assert replay(recorded[0], [2]).episodes[0].episode == 2


def test_disturbed_actions_are_the_expert_s_for_where_it_came(tmp_path):
    """What was executed is told as well, so that replaying finds the same way."""
    folder = tmp_path / "disturbed"
    record(SCENE, folder, 2, 9, conditions=CONDITIONS[:1], workers=0, disturbance=Disturbance(0.1, 0.05, 3))
    data = LeRobotDataset(folder, action_horizon=1)
    executed = np.stack([data.low_dim(f"executed_{name}") for name in ("dx", "dy")], 1)
    actions, states = data.low_dim("action"), data.low_dim("observation.state")
    assert (np.abs(executed - actions).max(1) > 1e-4).mean() > 0.9
    env = DetourEnv(size=32)
    rows = data.episode_slices[0]
    env.reset(seed=9, options=CONDITIONS[0])
    expert = env.expert(np.random.default_rng(0))
    for row in range(rows.start, rows.stop):
        np.testing.assert_allclose(states[row], env.embodiment.to_robot(env.position), atol=1e-6)
        np.testing.assert_allclose(expert.act(), actions[row], atol=1e-6)
        env.step(executed[row])
    assert replay(folder).successes == 2


def test_seeds_on_which_the_expert_fails_are_left_out_and_told(tmp_path):
    made = record(
        SCENE,
        tmp_path / "pushed",
        2,
        conditions=CONDITIONS[:1],
        disturbance=Disturbance(0.2, 0.03),
    )
    failed = made.failed['{"side": "left"}']
    kept = set(LeRobotDataset(tmp_path / "pushed", action_horizon=1).low_dim("seed").tolist())
    assert failed
    assert not kept & set(failed)
    assert made.episodes == len(kept) == 2


def test_cut_short_it_leaves_nothing(tmp_path):
    """It could lack whole conditions: here the first one is whole, the second has not begun."""

    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(SCENE, tmp_path / "cut", 2, conditions=CONDITIONS, workers=0, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_an_expert_that_hardly_ever_succeeds_ends_the_recording(tmp_path):
    with pytest.raises(ConfigError, match=r"only \d of 10 episodes .*Disturb it less"):
        record(
            SCENE, tmp_path / "no", 1, conditions=CONDITIONS[:1], workers=0, disturbance=Disturbance(push=1.0)
        )
    assert not list(tmp_path.iterdir())


def test_what_was_not_recorded_so_cannot_be_replayed(recorded, tmp_path):
    assert scene_of(recorded[0]) == SCENE
    with pytest.raises(DatasetError, match=f"{SIMULATION_FILE} is missing"):
        replay(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / SIMULATION_FILE).write_text('{"env": 3')
    with pytest.raises(DatasetError, match="cannot be read"):
        replay(tmp_path)


def test_robots_that_differ_are_recorded_as_they_are(tmp_path):
    record(
        Scene(DETOUR_FAST_ABSOLUTE, {"size": 32}), tmp_path / "fast", 1, conditions=CONDITIONS[:1], workers=0
    )
    data = LeRobotDataset(tmp_path / "fast", action_horizon=1)
    assert (data.info.fps, data.action_feature.names) == (20, ("x", "y"))
    with pytest.raises(ConfigError, match="must be at least 1"):
        record(SCENE, tmp_path / "none", 0)
