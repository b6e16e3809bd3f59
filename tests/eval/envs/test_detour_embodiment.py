"""The second robot does the first one's task: same layouts, other numbers, other image, other clock."""

import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vla.eval.envs
from vla.errors import ConfigError
from vla.eval.envs.detour import CAMERA, MAX_STEP, STATE, STEP_LIMIT, DetourEnv
from vla.eval.envs.detour_embodiment import EMBODIMENTS, FIRST, SECOND, Embodiment
from vla.eval.envs.detour_image import Camera

ANY = st.builds(
    lambda unit, angle, mirrored, fps: Embodiment(
        unit,
        (math.cos(angle), math.sin(angle)),
        (math.sin(angle), -math.cos(angle)) if mirrored else (-math.sin(angle), math.cos(angle)),
        fps=fps,
    ),
    unit=st.floats(0.001, 10),
    angle=st.floats(-4, 4),
    mirrored=st.booleans(),
    fps=st.sampled_from([5, 10, 20]),
)


def play(env, side, seed):
    """Let the expert play one episode; return the last info, the number of steps, and the positions."""
    expert = env.embodiment.expert(side)
    observation, info = env.reset(seed=seed, options={"side": side})
    assert env.observation_space.contains(observation)
    done, way = False, [env.position]
    while not done:
        action = env.embodiment.action(expert.act(env.layout, env.position), env.position)
        assert env.action_space.contains(action)
        observation, _, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation)
        way.append(env.position)
        done = terminated or truncated
    return info, len(way) - 1, np.array(way)


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space")  # millimetres are not
@pytest.mark.filterwarnings("error")
def test_gymnasiums_checker_accepts_the_second():
    env = gymnasium.make(vla.eval.envs.DETOUR_SECOND, render_mode="rgb_array").unwrapped
    assert env.embodiment is SECOND
    assert env.metadata["render_fps"] == 5
    assert DetourEnv.metadata["render_fps"] == 10
    check_env(env)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", EMBODIMENTS)
def test_the_expert_succeeds_with_every_robot(name, side):
    env = DetourEnv(size=16, embodiment=name)
    for seed in range(60):
        info, *_ = play(env, side, seed)
        assert info["success"]
        assert info["side_passed"] == side


def test_actions_of_the_second_are_millimetres_away_and_to_the_left_at_half_the_frequency():
    env = DetourEnv(embodiment=SECOND)
    env.reset(seed=0)
    start = env.position
    env.step(np.array([0.0, 20.0]))  # of a table that is 400 wide
    np.testing.assert_allclose(env.position - start, [-20 / 400, 0], atol=1e-12)
    env.step(np.array([-8.0, 0.0]))
    np.testing.assert_allclose(env.position - start, [-20 / 400, -8 / 400], atol=1e-12)
    before = env.position
    env.step(np.array([0.0, -4000.0]))
    np.testing.assert_allclose(env.position - before, [2 * MAX_STEP, 0], atol=1e-12)


def test_the_second_measures_along_its_own_axes_and_is_cut_off_after_as_much_time():
    env = DetourEnv(embodiment=SECOND)
    observation, info = env.reset(seed=3)
    x, y = env.position
    np.testing.assert_allclose(observation[STATE], [400 * y, -400 * x], rtol=1e-6)
    np.testing.assert_allclose(info["position"], [x, y], rtol=1e-6)
    steps, truncated = 0, False
    while not truncated:
        *_, truncated, info = env.step(np.zeros(2))
        steps += 1
    assert steps == STEP_LIMIT / 2


@given(robot=ANY, vector=st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
def test_robot_and_table_are_each_others_inverse(robot, vector):
    there = robot.to_robot(np.array(vector))
    assert math.isclose(np.hypot(*there) * robot.unit, math.hypot(*vector), rel_tol=1e-5, abs_tol=1e-6)
    np.testing.assert_allclose(robot.to_table(there), vector, atol=1e-5)


@settings(max_examples=30)
@given(robot=ANY, seed=st.integers(0, 1000))
def test_the_same_way_whatever_its_axes_and_units(robot, seed):
    plain = DetourEnv(size=16, embodiment=Embodiment(fps=robot.fps))
    other = DetourEnv(size=16, embodiment=robot)
    np.testing.assert_allclose(play(plain, "left", seed)[2], play(other, "left", seed)[2], atol=1e-4)


def test_layouts_are_those_of_the_first():
    for seed in range(5):
        first, second = DetourEnv(), DetourEnv(embodiment=SECOND)
        infos = [env.reset(seed=seed)[1] for env in (first, second)]
        for thing in ("position", "cup", "target"):
            np.testing.assert_array_equal(infos[0][thing], infos[1][thing])


def warped(image: np.ndarray, camera: Camera) -> np.ndarray:
    """Turn, zoom and move an image of the whole table, by Pillow: for each pixel, where it comes from."""
    size = image.shape[0]
    angle, (x, y) = math.radians(camera.turn), camera.centre
    cos, sin = math.cos(angle) / camera.zoom, math.sin(angle) / camera.zoom
    half, column, row = size / 2, x * size, (1 - y) * size
    # Rows count downwards, so that what is counter-clockwise on the table is the other way round here.
    affine = (cos, -sin, column - cos * half + sin * half, sin, cos, row - sin * half - cos * half)
    image = Image.fromarray(image).transform(
        (size, size), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC, fillcolor=(70, 64, 60)
    )
    return np.asarray(image)


@pytest.mark.parametrize(
    "camera",
    [SECOND.camera, Camera(turn=-70), Camera(zoom=1.5, centre=(0.4, 0.3)), Camera(turn=180, zoom=0.5)],
    ids=str,
)
def test_a_camera_sees_the_first_ones_picture_turned_zoomed_and_moved(camera):
    first = DetourEnv(size=256)
    other = DetourEnv(size=256, embodiment=Embodiment(camera=camera))
    for seed in range(3):
        plain, seen = (env.reset(seed=seed)[0][CAMERA] for env in (first, other))
        expected = warped(plain, camera).astype(int)
        assert np.abs(seen - expected).mean() < 1.5, "only edges may differ"
        assert np.abs(plain.astype(int) - expected).mean() > 3


def test_everything_of_a_layout_is_in_the_seconds_picture():
    env = DetourEnv(size=16, embodiment=SECOND)
    for seed in range(300):
        env.reset(seed=seed)
        for thing in (env.layout.gripper, env.layout.cup, env.layout.target):
            seen = SECOND.camera.place(thing)
            assert (seen > 0.05).all()
            assert (seen < 0.95).all()


def test_the_first_is_the_default_and_changes_no_number():
    assert DetourEnv().embodiment is FIRST
    point = np.array([0.3, 0.7])
    np.testing.assert_array_equal(FIRST.to_table(point), point)
    np.testing.assert_array_equal(FIRST.to_robot(point), point.astype(np.float32))
    np.testing.assert_array_equal(FIRST.camera.place(point), point)
    assert (FIRST.steps(STEP_LIMIT), FIRST.length(MAX_STEP)) == (STEP_LIMIT, MAX_STEP)


@given(robot=ANY, seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_told_where_to_go_it_takes_the_way_of_one_told_how_far(robot, seed):
    far, where = DetourEnv(16, embodiment=robot), DetourEnv(16, embodiment=replace(robot, absolute=True))
    (*_, way), (*_, same) = play(far, "left", seed), play(where, "left", seed)
    np.testing.assert_allclose(way, same, atol=1e-5)


def test_a_position_too_far_away_is_approached_by_the_longest_step():
    env = DetourEnv(16, embodiment="fast_absolute")
    env.reset(seed=0)
    before = env.position
    env.step(np.array([1.0, 0.0], np.float32))
    assert np.hypot(*(env.position - before)) == pytest.approx(MAX_STEP / 2)


def test_errors():
    with pytest.raises(
        ConfigError,
        match=r"no embodiment 'secnd', only first, second, fast, fast_absolute. Did you mean 'second'",
    ):
        DetourEnv(embodiment="secnd")
    with pytest.raises(ConfigError, match="at a right angle, got x \\(1, 0\\) and y \\(1, 1\\)"):
        Embodiment(x_axis=(1, 0), y_axis=(1, 1))
    for broken in (
        lambda: Embodiment(unit=0.0),
        lambda: Embodiment(fps=0),
        lambda: Embodiment(camera=Camera(zoom=-1)),
    ):
        with pytest.raises(ConfigError, match="must be above 0"):
            broken()
