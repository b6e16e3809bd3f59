"""Batched episodes agree with one at a time, and with what the environment says."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from vla.errors import ConfigError
from vla.eval.envs.detour import CAMERA, INSTRUCTIONS, STATE, STEP_LIMIT, DetourEnv, DetourExpert, Layout
from vla.eval.envs.detour_embodiment import SECOND
from vla.eval.envs.detour_layout import TOUCH_DISTANCE
from vla.eval.rollout import rollout
from vla.serve.chunking import RecedingHorizon

HORIZON = 8


class Seeing:
    """Finds cup and target in the image by their colours and plans as the instruction says."""

    def __init__(self, silent_side="left"):
        self.silent_side, self.batches, self.resets = silent_side, [], 0

    def infer(self, observation):
        image = observation[CAMERA].astype(float)
        size = len(image)
        red, green, blue = np.moveaxis(image, -1, 0)
        cup, target = (
            self._centre(mask, size)
            for mask in (red > np.maximum(green, blue) + 40, green > np.maximum(red, blue) + 10)
        )
        sides = {text: side for side, text in INSTRUCTIONS.items()}
        side = sides[observation["task"]] or self.silent_side
        position = observation[STATE].astype(float)
        plan = DetourExpert(side).plan(Layout(position, cup, target), position, HORIZON)
        return {"actions": np.pad(plan, ((0, HORIZON - len(plan)), (0, 0))), "text": side}

    def infer_batch(self, observations, *, generator=None, text=False):
        self.batches.append(len(observations))
        answers = [self.infer(observation) for observation in observations]
        return answers if text else [{"actions": answer["actions"]} for answer in answers]

    def reset(self):
        self.resets += 1

    @staticmethod
    def _centre(mask, size):
        rows, columns = np.nonzero(mask)
        return np.array([(columns.mean() + 0.5) / size, 1 - (rows.mean() + 0.5) / size])


class Straight(Seeing):
    def infer(self, observation):
        return {"actions": np.tile(np.float32([0, 0.03]), (HORIZON, 1))}


@pytest.mark.parametrize("size", [48, 64])
def test_picture_state_and_instruction_are_enough_to_solve_the_task(size):
    for side, expected in (("left", "left"), ("right", "right"), (None, "left")):
        options = {"side": side}
        results = rollout(lambda: DetourEnv(size=size), Seeing(), range(30), options, execute=4, batch_size=8)
        assert [result.seed for result in results] == list(range(30))
        assert all(result.success and not result.info["collided"] for result in results)
        assert {result.info["side_passed"] for result in results} == {expected}
        assert {result.info["stated_side"] for result in results} == {side}
        assert all(20 <= result.steps <= 32 for result in results)


def test_the_way_of_another_robot_is_in_table_units_like_its_cup_and_target():
    """Straight ahead for a robot whose x points away: it walks into the cup from below."""

    class Ahead(Seeing):
        def infer(self, observation):
            return {"actions": np.tile(np.float32([12.0, 0.0]), (HORIZON, 1))}

    for result in rollout(lambda: DetourEnv(embodiment=SECOND), Ahead(), range(3), execute=4):
        assert result.info["collided"]
        np.testing.assert_allclose(
            np.diff(result.trajectory, axis=0), [[0, 12 / 400]] * result.steps, atol=1e-6
        )
        assert np.hypot(*(result.trajectory[-1] - result.info["cup"])) < TOUCH_DISTANCE


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_give_the_same_as_one_at_a_time(batch_size):
    seeds, options = [3, 1, 4, 1, 5, 9, 2], [{"side": side} for side in ("left", "right", None) * 2] + [{}]
    calls = []
    results = rollout(
        DetourEnv,
        Seeing("right"),
        seeds,
        options,
        execute=3,
        batch_size=batch_size,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[-1] == (7, 7)
    assert len(calls) == -(-7 // batch_size)
    env = DetourEnv()
    for seed, option, result in zip(seeds, options, results, strict=True):
        runner = RecedingHorizon(Seeing("right"), 3)
        observation, _ = env.reset(seed=seed, options=option)
        states, done = [observation[STATE]], False
        while not done:
            observation, _, terminated, truncated, info = env.step(runner.act(observation))
            states.append(observation[STATE])
            done = terminated or truncated
        np.testing.assert_array_equal(result.trajectory, states)
        assert result.steps == len(states) - 1
        assert result.success == info["success"]
        assert result.info["side_passed"] == info["side_passed"]
        np.testing.assert_array_equal(result.info["cup"], env.layout.cup)


def test_one_pass_serves_all_that_still_run():
    policy = Seeing()
    results = rollout(DetourEnv, policy, range(10), execute=5, batch_size=6)
    longest = [max(result.steps for result in results[a:b]) for a, b in ((0, 6), (6, 10))]
    assert len(policy.batches) == sum(-(-steps // 5) for steps in longest)
    assert policy.batches[0] == 6
    assert policy.resets == 2
    assert all(result.decisions == tuple(range(0, result.steps, 5)) for result in results)


def test_collisions_and_cut_offs_are_failures():
    class Still(Seeing):
        def infer(self, observation):
            return {"actions": np.zeros((HORIZON, 2), np.float32)}

    for result in rollout(DetourEnv, Straight(), range(5), execute=4):
        assert (result.success, result.info["collided"]) == (False, True)
        assert result.steps < 8
    for result in rollout(DetourEnv, Still(), range(5), execute=4):
        assert (result.success, result.info["collided"], result.steps) == (False, False, STEP_LIMIT)


def test_text_and_film_where_asked_for():
    def make_env():
        return DetourEnv(render_mode="rgb_array", render_size=32)

    results = rollout(make_env, Seeing("right"), range(4), execute=8, batch_size=3, text=True, film=2)
    for index, result in enumerate(results):
        assert result.texts == ("right",) * len(result.decisions)
        if index < 2:
            assert result.frames.shape == (result.steps + 1, 32, 32, 3)
            assert (result.frames[0] != result.frames[-1]).any()
        else:
            assert result.frames is None
    assert rollout(DetourEnv, Seeing(), [0], execute=8)[0].texts == ()


class Mute(gymnasium.Env):
    observation_space = spaces.Dict({STATE: spaces.Box(0, 1, (2,))})
    action_space = spaces.Box(-1, 1, (2,))
    closed = False

    def reset(self, *, seed=None, options=None):
        return {STATE: np.zeros(2, np.float32)}, {}

    def step(self, action):
        return {STATE: np.zeros(2, np.float32)}, 0.0, True, False, {"reward": 1}

    def close(self):
        self.closed = True


def test_what_does_not_render_is_filmed_by_its_camera():
    (result,) = rollout(DetourEnv, Straight(), [3], execute=4, film=1)
    env, frames = DetourEnv(), []
    frames.append(env.reset(seed=3)[0][CAMERA])
    for _ in range(result.steps):
        frames.append(env.step(np.float32([0, 0.03]))[0][CAMERA])
    np.testing.assert_array_equal(result.frames, frames)


def test_errors_and_environments_are_closed_after_them():
    env = Mute()
    with pytest.raises(ConfigError, match=r"does not say 'success'; it has \['reward'\]"):
        rollout(lambda: env, Straight(), [0], execute=1)
    assert env.closed
    with pytest.raises(ConfigError, match="render_mode='rgb_array'"):
        rollout(Mute, Straight(), [0], execute=1, film=1)
    with pytest.raises(ConfigError, match="0 seeds"):
        rollout(DetourEnv, Straight(), [], execute=1)
    with pytest.raises(ConfigError, match="2 sets of reset options for 3 seeds"):
        rollout(DetourEnv, Straight(), [0, 1, 2], [{}, {}], execute=1)
    with pytest.raises(ConfigError, match="predicts 8 actions at a time, so 9"):
        rollout(DetourEnv, Straight(), [0], execute=9)
