"""The way of an observation: robot, transforms, policy, network, transforms, and nowhere back."""

import itertools
import sys

import numpy as np
import pytest

from tests.policies.conftest import make_robot_policy
from vla.policies.robot import RobotPolicy

ROOMS = {
    "vla.policies.robot": "robot",
    "vla.policies.acting": "robot",
    "vla.policies.observation": "robot",
    "vla.transforms": "transforms",
    "vla.policies": "policy",
    "vla.nn": "network",
    "vla.objectives": "network",
}
"""Room by the beginning of a module's name, the first that fits; types and errors are open to all."""


def room_of(frame) -> str | None:
    """The room of the nearest frame of vla, from this one outwards; None where there is none."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("vla.") and module not in ("vla.types", "vla.errors"):
            return next((room for start, room in ROOMS.items() if module.startswith(start)), module)
        frame = frame.f_back
    return None


def calls_of(work) -> list[tuple[str | None, str]]:
    """The calls of some work that enter a function of vla, in order: from which room, into which."""
    calls: list[tuple[str | None, str]] = []

    def profile(frame, event, argument):
        if event == "call" and frame.f_globals.get("__name__", "").startswith("vla."):
            calls.append((room_of(frame.f_back), room_of(frame)))

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


@pytest.fixture(scope="module")
def calls():
    policy = RobotPolicy(make_robot_policy())
    observation = {
        "observation.images.top": np.zeros((32, 48, 3), np.uint8),
        "observation.state": np.zeros(3, np.float32),
        "task": "pick up the cup",
    }
    policy.infer(observation)  # what is built on first use is built
    return calls_of(lambda: policy.infer(observation))


@pytest.fixture(scope="module")
def trace(calls):
    """The rooms that are entered, repetitions left out."""
    return [room for room, _ in itertools.groupby(room for _, room in calls)]


def test_only_these_rooms_are_entered(trace):
    assert set(trace) == set(ROOMS.values())


def test_each_room_is_passed_once_there_and_transforms_once_back(trace):
    first = trace.index("policy")
    last = len(trace) - 1 - trace[::-1].index("policy")
    network = {index for index, room in enumerate(trace) if room == "network"}
    transforms = [index for index, room in enumerate(trace) if room == "transforms"]
    assert trace[0] == "robot"
    assert all(first < index for index in network)
    assert not any(first < index < last for index in transforms), (
        "transforms run before and after, not between"
    )
    assert min(transforms) < first
    assert max(transforms) > last


def test_a_room_calls_only_those_below_it(calls):
    below = {(caller, callee) for caller, callee in calls if caller not in (None, callee)}
    solver_asks_for_the_velocity = ("network", "policy")  # a function that the policy hands to it
    down = {("robot", "transforms"), ("robot", "policy"), ("policy", "network")}
    assert below == {*down, solver_asks_for_the_velocity}
