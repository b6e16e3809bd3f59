"""Meta-World's tasks as policies see them: the package's own physics and success, goals that can be seen."""

import numpy as np
import pytest

from vla.errors import ConfigError

pytest.importorskip("metaworld")

from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from vla.eval.envs.metaworld import INSTRUCTIONS, MetaWorldEnv
from vla.eval.envs.metaworld_report import MetaWorldReport
from vla.eval.outcome import EpisodeResult
from vla.types import IMAGE_PREFIX, STATE_KEY

TO_A_GOAL = ("reach-v3", "push-v3", "pick-place-v3")


@pytest.fixture(scope="module")
def env():
    made = MetaWorldEnv(size=64)
    yield made
    made.close()


def play(env, task, seed, options=()):
    observation, info = env.reset(seed=seed, options={"task": task, **dict(options)})
    expert, done, seen = env.expert(np.random.default_rng(0)), False, [observation]
    while not done:
        observation, _, terminated, truncated, info = env.step(expert.act())
        seen.append(observation)
        done = terminated or truncated
    return seen, info


@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_expert_does_the_task(env, task):
    seen, info = play(env, task, 11)
    assert info["success"] is True
    assert {one["task"] for one in seen} == {INSTRUCTIONS[task]}
    assert 20 < len(seen) < 150
    assert info["was_near"]


def test_physics_and_success_are_the_package_s(env):
    """The same layout and the same actions in Meta-World's own class."""
    env.reset(seed=7, options={"task": "push-v3"})
    theirs = ALL_V3_ENVIRONMENTS["push-v3"]()
    theirs._partially_observable, theirs._set_task_called = False, True
    theirs.__dict__.pop("sawyer_observation_space", None)
    theirs._last_rand_vec = env.world._env._last_rand_vec
    truth, _ = theirs.reset()
    np.testing.assert_allclose(env.world.seen, truth, atol=1e-9)
    expert, done = env.expert(np.random.default_rng(0)), False
    while not done:
        action = expert.act()
        observation, reward, done, _, info = env.step(action)
        truth, expected, _, _, said = theirs.step(action.astype(np.float64))
        np.testing.assert_allclose(observation[STATE_KEY], truth[:4], atol=1e-6)
        assert reward == pytest.approx(expected, abs=1e-6)
        assert info["success"] == bool(said["success"])
    theirs.close()


@pytest.mark.parametrize("task", TO_A_GOAL)
@pytest.mark.parametrize("camera", ["side", "front"])
def test_goal_is_seen_where_it_is(env, task, camera):
    """A goal that is moved changes the image there, and nothing else does."""
    env.reset(seed=2, options={"task": task})
    world, model = env.world, env.world._env.model
    before = world.image(camera, 64).astype(int)
    hidden = model.site("goal").rgba.copy()
    model.site("goal").rgba = [0, 0, 0, 0]
    without = world.image(camera, 64).astype(int)
    model.site("goal").rgba = hidden
    changed = np.abs(before - without).sum(-1) > 60
    assert 3 <= changed.sum() <= 80
    green = before[changed].mean(0)
    assert green[1] > 1.5 * max(green[0], green[2])


def test_tasks_of_one_scene_look_alike():
    """Only the instruction tells them apart, where goals lie alike: reach and pick-place draw theirs so."""
    env = MetaWorldEnv(size=64)
    seen = [env.reset(seed=3, options={"task": task})[0] for task in ("reach-v3", "pick-place-v3")]
    for camera in ("side", "front"):
        one, other = (each[IMAGE_PREFIX + camera].astype(int) for each in seen)
        assert np.abs(one - other).mean() < 0.5
    assert seen[0]["task"] != seen[1]["task"]
    env.close()


def test_instruction_can_be_another(env):
    observation, info = env.reset(seed=0, options={"task": "push-v3", "instruction": "reach the goal"})
    assert (observation["task"], info["instruction"], info["task"]) == (
        ("reach the goal", "reach the goal", "push-v3")
    )


def test_what_cannot_be_is_said():
    for wrong, match in (
        ({"tasks": ["pick-place"]}, "no task 'pick-place' here.*Did you mean 'pick-place-v3'"),
        ({"tasks": "reach-v3"}, "list of at least one task, such as"),
        ({"cameras": ["back"]}, "no camera 'back'"),
        ({"size": 8}, "16 to 480 pixels, got 8"),
        ({"step_limit": 501}, "1 to 500, got 501"),
    ):
        with pytest.raises(ConfigError, match=match):
            MetaWorldEnv(**wrong)


def test_failures_have_shapes():
    def ended(**info):
        said = {"was_near": False, "was_held": False, "is_held": False} | info
        return EpisodeResult(0, info.get("success", False), 5, np.zeros((6, 3)), info=said)

    results = [
        ended(success=True),
        ended(),
        ended(was_near=True),
        ended(was_near=True, was_held=True),
        ended(was_near=True, was_held=True, is_held=True),
        EpisodeResult(0, False, 5, np.zeros((6, 1)), info={"success": False, "ended": "hung"}),
    ]
    summary = MetaWorldReport().summarize(results)
    expected = {"success": 1, "never came near": 1, "timed out": 2, "dropped": 1, "hung": 1}
    assert summary.extra["endings"] == expected
    assert MetaWorldReport().columns(summary)["failures"] == (
        "2 timed out, 1 never came near, 1 dropped, 1 hung"
    )
