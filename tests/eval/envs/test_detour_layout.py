"""The task's geometry: both ways are open to the expert, their mean is not a way."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.eval.envs.detour_layout import (
    CUP_RADIUS,
    GRIPPER_RADIUS,
    MAX_STEP,
    SUCCESS_DISTANCE,
    TOUCH_DISTANCE,
    DetourExpert,
    Layout,
    draw_layout,
    touches_cup,
)

LAYOUTS = [draw_layout(np.random.default_rng(seed)) for seed in range(1000)]


def positions(start: np.ndarray, plan: np.ndarray) -> np.ndarray:
    return start + np.concatenate([np.zeros((1, 2)), np.cumsum(plan.astype(float), axis=0)])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_expert_reaches_every_target_on_its_side_with_constant_clearance(side):
    expert = DetourExpert(side)
    for layout in LAYOUTS:
        plan = expert.plan(layout)
        path = positions(layout.gripper, plan)
        to_cup = np.hypot(*(path - layout.cup).T)
        to_target = np.hypot(*(path - layout.target).T)
        arrival = int(np.argmax(to_target <= SUCCESS_DISTANCE))
        crossing = int(np.argmax(path[:, 1] > layout.cup[1]))
        assert 18 <= arrival <= 30
        assert to_target[-1] < 1e-6
        assert to_cup[: crossing + 1].min() > TOUCH_DISTANCE + 0.025
        assert to_cup[3:crossing].max() < TOUCH_DISTANCE + 0.045
        assert (path[crossing, 0] < layout.cup[0]) == (side == "left")
        assert np.hypot(*plan.T).max() <= expert.speed + 1e-6 < MAX_STEP


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_first_step_is_mostly_sideways_and_turns_are_smooth(side):
    for layout in LAYOUTS[:200]:
        plan = DetourExpert(side).plan(layout)
        sideways = plan[0, 0] * (-1 if side == "left" else 1)
        assert sideways > 0.75 * np.hypot(*plan[0])
        heading = np.unwrap(np.arctan2(plan[:, 1], plan[:, 0]))
        assert np.abs(np.diff(heading)).max() < 0.6  # the circle itself turns 0.2 a step


def test_left_and_right_are_mirror_images():
    layout = Layout(np.array([0.5, 0.15]), np.array([0.5, 0.31]), np.array([0.5, 0.85]))
    left, right = DetourExpert("left").plan(layout), DetourExpert("right").plan(layout)
    np.testing.assert_allclose(left * [-1, 1], right, atol=1e-6)


@given(seed=st.integers(0, 10_000), angle=st.floats(-math.pi, 0), distance=st.floats(0.13, 0.3))
def test_the_expert_recovers_from_anywhere_in_front_of_the_cup(seed, angle, distance):
    layout = draw_layout(np.random.default_rng(seed))
    start = layout.cup + distance * np.array([math.cos(angle), math.sin(angle)])
    path = positions(start, DetourExpert("left").plan(layout, start))
    assert np.hypot(*(path[-1] - layout.target)) < 1e-6
    assert not any(touches_cup(layout, a, b) for a, b in pairwise(path))


@pytest.mark.parametrize("execute", [3, 4, 8])
@pytest.mark.parametrize("weight", [0.5, 0.65])
def test_the_mean_of_both_plans_drives_into_the_cup(execute, weight):
    """Even replanned from where it got to, and even where it leans to one side."""
    collisions = 0
    for layout in LAYOUTS[:100]:
        position, collided = layout.gripper, False
        for _ in range(12):
            left, right = (DetourExpert(side).plan(layout, position, execute) for side in ("left", "right"))
            for step in weight * left[:execute] + (1 - weight) * right[:execute]:
                collided = collided or touches_cup(layout, position, position + step)
                position = position + step
            if collided:
                break
        collisions += collided
    assert collisions >= 90


def test_layouts_vary_and_stay_on_the_table():
    for name, least_spread in (("gripper", 0.02), ("cup", 0.02), ("target", 0.03)):
        centres = np.array([getattr(layout, name) for layout in LAYOUTS])
        assert (centres.std(axis=0) > least_spread).all()
        assert (centres > 0.05).all()
        assert (centres < 0.95).all()
    gaps = [np.hypot(*(layout.cup - layout.gripper)) - GRIPPER_RADIUS - CUP_RADIUS for layout in LAYOUTS]
    assert min(gaps) > 0.02
    assert max(gaps) < 2 * MAX_STEP


def test_touching_is_seen_between_two_steps():
    layout = Layout(np.zeros(2), np.array([0.5, 0.5]), np.ones(2))
    assert touches_cup(layout, np.array([0.3, 0.5]), np.array([0.7, 0.5]))
    assert not touches_cup(layout, np.array([0.3, 0.63]), np.array([0.7, 0.63]))
    assert touches_cup(layout, np.array([0.5, 0.61]), np.array([0.5, 0.61]))
