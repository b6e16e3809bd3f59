"""What a server says of its robot: plain values, the recorded ones before the robot file's."""

import json

import msgpack
import pytest

from tests.policies.conftest import make_robot_policy
from tests.serve.robots import of_robot, tiny
from vla.interface import RobotInterface, VectorInterface
from vla.policies.robot import RobotPolicy
from vla.serve.contract import contract
from vla.serve.keys import KeyMap
from vla.serve.limits.file import limits_of
from vla.transforms import Pipeline
from vla.transforms.robots import load_robot


def is_plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(one) for key, one in value.items())
    if isinstance(value, list):
        return all(is_plain(one) for one in value)
    return value is None or type(value) in (str, int, float, bool)


def test_the_whole_of_a_shipped_robot():
    policy, robot = of_robot("droid"), load_robot("droid")
    made = contract(
        policy,
        checkpoint="me/droid",
        revision="abc",
        robot=robot,
        limits=limits_of(policy, robot),
        keys=KeyMap(policy, robot).keys,
        p50=0.031,
        p95=0.04,
    )
    assert is_plain(made)
    assert msgpack.unpackb(msgpack.packb(made)) == made == json.loads(json.dumps(made))
    assert made["protocol"] == 1
    about = made["robot"]
    assert about["name"] == "DROID"
    assert about["cameras"] == {"base_0_rgb": None, "left_wrist_0_rgb": None}
    assert about["state"]["units"] == ["rad"] * 7 + ["0 open, 1 closed"]
    assert about["state"]["high"] == [None] * 7 + [1.0]
    assert about["action"]["names"] == list(robot.action_names)
    assert about["action"]["relative"] is None
    assert (about["frequency"], about["horizon"]) == (15.0, policy.window.executable)
    assert made["execute"] == policy.window.executable // 2
    assert made["latency_ms"] == {"p50": pytest.approx(31), "p95": pytest.approx(40)}
    assert made["normalisation"] == {"state": "zscore", "actions": "zscore", "formula": "vla"}
    assert (made["checkpoint"], made["revision"], made["offers"]) == ("me/droid", "abc", ["guided"])
    assert made["limits"]["action"]["high"] == [1.0] * 8
    assert "warning" not in made


def test_what_the_checkpoint_records_comes_first():
    policy = make_robot_policy()
    interface = RobotInterface(
        {"top": (480, 640), "wrist": None},
        VectorInterface("xyz", ("m", None, "m"), (-1, None, None)),
        VectorInterface("uv"),
        20.0,
    )
    policy.pipeline = Pipeline(policy.pipeline.transforms, interface)
    about = contract(RobotPolicy(policy), checkpoint="x")["robot"]
    assert about["cameras"] == {"top": [480, 640], "wrist": None}
    assert about["state"] == {
        "names": ["x", "y", "z"],
        "units": ["m", None, "m"],
        "low": [-1.0, None, None],
        "high": [None] * 3,
    }
    assert about["action"]["relative"] == [True, False]
    assert about["frequency"] == 20.0


def test_a_past_without_a_reset_is_warned_of():
    class Remembering:
        def __init__(self, policy):
            self.wrapped, self.policy, self.past = policy, policy.policy, 3

        def __getattr__(self, name):
            return getattr(self.wrapped, name)

    policy = Remembering(tiny())
    assert "warning" not in contract(policy, checkpoint="x")
    made = contract(policy, checkpoint="x", resettable=False)
    assert made["past"] == 3
    assert "3 steps before the present" in made["warning"]


def test_latency_that_was_not_measured_is_none():
    made = contract(tiny(), checkpoint="x", level="graph")
    assert made["latency_ms"] == {"p50": None, "p95": None}
    assert contract(tiny(), checkpoint="x", offers=(), max_prefix=4)["offers"] == []
    assert (made["offers"], made["max_prefix"]) == (["guided"], 0)
    assert (made["level"], made["limits"], made["keys"]) == ("graph", None, None)
