"""The way of an observation: robot, transforms, policy, network, transforms, and nowhere back."""

import itertools
import sys

import numpy as np
import pytest

from tests.policies.conftest import make_robot_policy
from vla.policies.robot import RobotPolicy

ROOMS = {
    "vla.policies.robot": "robot",
    "vla.transforms": "transforms",
    "vla.policies": "policy",
    "vla.nn": "network",
    "vla.objectives": "network",
}
"""Room by the beginning of a module's name, the first that fits; types and errors are open to all."""


def rooms_of(work) -> list[str]:
    """The rooms that the calls of some work lie in, repetitions left out."""
    visited: list[str] = []

    def profile(frame, event, argument):
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith("vla."):
            visited.append(module)

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    named = [
        next((room for start, room in ROOMS.items() if name.startswith(start)), name) for name in visited
    ]
    return [
        room
        for room, _ in itertools.groupby(name for name in named if name not in ("vla.types", "vla.errors"))
    ]


@pytest.fixture(scope="module")
def trace():
    policy = RobotPolicy(make_robot_policy())
    observation = {
        "observation.images.top": np.zeros((32, 48, 3), np.uint8),
        "observation.state": np.zeros(3, np.float32),
        "task": "pick up the cup",
    }
    policy.infer(observation)  # what is built on first use is built
    return rooms_of(lambda: policy.infer(observation))


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


def test_the_network_goes_nowhere_but_to_the_policy_that_called_it(trace):
    after = {later for room, later in itertools.pairwise(trace) if room == "network"}
    assert after <= {"policy", "robot"}
