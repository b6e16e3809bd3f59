"""A state far from the training data acts, with one warning that names dimension, value and range."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.policies.conftest import make_robot_policy
from tests.policies.test_robot import make_observation
from vla.interface import RobotInterface, VectorInterface
from vla.policies.robot import RobotPolicy
from vla.transforms.base import Pipeline
from vla.transforms.grippers import FlipSigns
from vla.transforms.normalize import LEROBOT_FORMULA, VLA_FORMULA, FeatureStats, Normalize, Statistics

STATE = "observation.state"
INTERFACE = RobotInterface(
    {"top": (28, 28), "wrist": None}, VectorInterface(("x", "y", "z")), VectorInterface(("dx", "dy")), 10.0
)


@pytest.fixture(scope="module")
def policy():
    made = make_robot_policy()  # mean 0.1, 0.2, 0.3; std 1, 2, 3; from -3, -6, -9 to 3, 6, 9
    made.pipeline = Pipeline(made.pipeline.transforms, INTERFACE)
    return made


def warned(robot, caplog, *states, act=None):
    """The warnings about states, each acted on with a finite answer."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for state in states:
            assert np.isfinite((act or robot.infer)(make_observation(**{STATE: state}))["actions"]).all()
    return [record.getMessage() for record in caplog.records if "far from" in record.getMessage()]


def test_once_for_each_dimension(policy, caplog):
    robot = RobotPolicy(policy)
    assert warned(robot, caplog, [100.0, 200.2, -299.6]) == []
    (told,) = warned(robot, caplog, *[[100.2, 200.0, 0.0]] * 3, act=robot.start().infer)
    assert "observation.state is far" in told
    assert "100.2 in dimension 0 ('x'), in training -3 to 3. Compare" in told
    (told,) = warned(robot, caplog, [1e30, 57, -1e30], [1e30, 57, 1e30])
    assert "-1e+30 in dimension 2 ('z'), in training -9 to 9." in told
    assert "('x')" not in told
    assert len(warned(RobotPolicy(policy), caplog, [1e30] * 3)) == 1


def test_a_warm_up_measures_nothing(policy, caplog):
    def shifted(one):
        if not isinstance(one, Normalize):
            return one
        stats = one.statistics.features["state"]
        far = replace(stats, mean=(1e6,) * 3, min=(1e6 - 9,) * 3, max=(1e6 + 9,) * 3, q01=(), q99=())
        return replace(one, statistics=Statistics(one.statistics.features | {"state": far}))

    other = make_robot_policy()
    other.pipeline = Pipeline([shifted(one) for one in policy.pipeline.transforms])
    robot = RobotPolicy(other)
    with caplog.at_level(logging.WARNING):
        robot.warm_up("left")
    assert "far from" not in caplog.text
    assert len(warned(robot, caplog, [0.0] * 3)) == 1


def test_the_state_counts_as_the_statistics_count_it(policy, caplog):
    other = make_robot_policy()
    other.pipeline = Pipeline([FlipSigns(state=(0,)), *policy.pipeline.transforms], INTERFACE)
    (told,) = warned(RobotPolicy(other), caplog, [500.0, 0, 0])
    assert "in the convention that it was trained in: -500 in dimension 0 ('x')" in told


STATS = FeatureStats(
    mean=(0.0, 5.0), std=(1.0, 0.0), min=(-2.0, 5.0), max=(2.0, 5.0), q01=(-1.0, 5.0), q99=(1.0, 5.0)
)


@pytest.mark.parametrize(
    ("mode", "limit"), [("zscore", 100), ("quantile", 200), ("minmax", 400), ("identity", 100)]
)
def test_far_is_100_spreads_from_the_centre(mode, limit):
    normalize = Normalize(Statistics({"state": STATS}), {"state": mode}, VLA_FORMULA)
    assert normalize.far("state", torch.tensor([limit * 0.999, 5.0])) == {}
    assert normalize.far("state", torch.tensor([limit * 0.999, 1e9])) == {}  # constant: it becomes 0
    for x in ([-limit * 1.001, 5.0], [[0.0, 5.0], [-limit * 1.001, 5.0]]):
        (told,) = normalize.far("state", torch.tensor(x), ("x", "y")).items()
        ends = "-1 to 1" if mode == "quantile" else "-2 to 2"
        assert told == (0, f"{-limit * 1.001:.6g} in dimension 0 ('x'), in training {ends}")


def test_statistics_that_hold_less():
    bare = FeatureStats(mean=(0.0, 5.0), std=(1.0, 0.0))
    plain = Normalize(Statistics({"state": bare}), {"state": "zscore"}, LEROBOT_FORMULA)
    told = plain.far("state", torch.tensor([0.0, 6.0]))  # a published formula divides by nearly nothing
    assert told == {1: "6 in dimension 1, in training 5 with a standard deviation of 0"}
    assert (
        Normalize(Statistics({"state": bare}), {"state": "identity"}).far("state", torch.ones(2) * 1e9) == {}
    )
    assert Normalize(Statistics({}), {}).far("state", torch.ones(2) * 1e9) == {}
