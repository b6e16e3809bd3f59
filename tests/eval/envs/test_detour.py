"""The environment: gymnasium's contract, the rules of the game, and its errors."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import vla.eval.envs  # registers
from vla.errors import ConfigError, ShapeError
from vla.eval.envs.detour import CAMERA, INSTRUCTIONS, MAX_STEP, STATE, STEP_LIMIT, DetourEnv, DetourExpert


def run(env, steps):
    for step in steps:
        *_, terminated, truncated, info = env.step(step)
        if terminated or truncated:
            break
    return terminated, truncated, info


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [48, 64])
def test_gymnasiums_checker_accepts_it(size):
    check_env(gymnasium.make(vla.eval.envs.DETOUR, size=size, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", range(20))
def test_the_expert_succeeds_and_its_side_is_seen(side, seed):
    env = DetourEnv()
    env.reset(seed=seed)
    terminated, _, info = run(env, DetourExpert(side).plan(env.layout))
    assert terminated
    assert info["success"]
    assert not info["collided"]
    assert info["side_passed"] == side


def test_straight_ahead_touches_the_cup_and_ends_the_episode():
    env = DetourEnv()
    env.reset(seed=0)
    terminated, truncated, info = run(env, [[0.0, 0.03]] * 20)
    assert (terminated, truncated) == (True, False)
    assert info["collided"]
    assert not info["success"]
    assert info["side_passed"] is None


def test_standing_still_is_cut_off():
    env = DetourEnv()
    env.reset(seed=0)
    terminated, truncated, info = run(env, [[0.0, 0.0]] * (STEP_LIMIT + 1))
    assert (terminated, truncated) == (False, True)
    assert not info["success"]
    assert env._steps == STEP_LIMIT


def test_the_layout_depends_on_the_seed_alone():
    env, images = DetourEnv(), []
    for side, text in INSTRUCTIONS.items():
        observation, info = env.reset(seed=7, options={"side": side})
        assert observation["task"] == info["instruction"] == text
        assert info["stated_side"] == side
        images.append(observation[CAMERA])
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])
    assert (env.reset(seed=8)[0][CAMERA] != images[0]).any()


def test_long_steps_are_shortened_and_the_table_has_an_edge():
    env = DetourEnv()
    before = env.reset(seed=0)[0][STATE]
    after = env.step(np.array([-3.0, 0.0]))[0][STATE]
    np.testing.assert_allclose(after - before, [-MAX_STEP, 0], atol=1e-6)
    for _ in range(30):
        observation = env.step(np.array([-3.0, -4.0]))[0]
    np.testing.assert_array_equal(observation[STATE], [0.0, 0.0])
    assert env.observation_space.contains(observation)


def test_the_last_crossing_upwards_tells_the_side():
    env = DetourEnv()
    env.reset(seed=0)
    cup = env.layout.cup
    run(env, DetourExpert("left").plan(env.layout)[:8])
    assert env._info()["side_passed"] == "left"
    for corner in ([-0.15, -0.15], [0.15, -0.15], [0.15, 0.1]):
        for _ in range(10):
            env.step(cup + corner - env.position)
        assert np.hypot(*(cup + corner - env.position)) < 1e-6
    assert not env._info()["collided"]
    assert env._info()["side_passed"] == "right"


def test_render_sizes_and_modes():
    env = DetourEnv(render_mode="rgb_array", render_size=128)
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (128, 128, 3)
    assert frame.dtype == np.uint8
    silent = DetourEnv()
    silent.reset(seed=0)
    assert silent.render() is None


def test_errors():
    env = DetourEnv()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2))
    with pytest.raises(ConfigError, match=r"side must be 'left', 'right' or None, got 'up'"):
        env.reset(options={"side": "up"})
    with pytest.raises(ConfigError, match=r"no reset option 'sides'. Did you mean 'side'"):
        env.reset(options={"sides": "left"})
    env.reset(seed=0)
    for action in (np.zeros(3), np.array([np.nan, 0.0]), np.zeros((1, 2))):
        with pytest.raises(ShapeError, match="two finite numbers"):
            env.step(action)
    with pytest.raises(ConfigError, match="at least 16 pixels"):
        DetourEnv(size=4)
    with pytest.raises(ConfigError, match="render_mode must be"):
        DetourEnv(render_mode="human")
