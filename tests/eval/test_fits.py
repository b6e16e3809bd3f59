"""A policy of another robot is told before it acts."""

from dataclasses import replace

import pytest

from vla.errors import ConfigError
from vla.eval.envs.detour import DetourEnv
from vla.eval.fits import check_robot
from vla.interface import VectorInterface

ROBOT = DetourEnv(size=16).interface


def test_its_own_robot_fits(caplog):
    check_robot("Detour", ROBOT, ROBOT)
    check_robot("Detour", ROBOT, None)
    numbered = replace(ROBOT, state=VectorInterface(("state_0", "state_1")))  # a recording without names
    check_robot("Detour", ROBOT, numbered)
    assert not caplog.records


def test_what_cannot_work_is_refused():
    for trained, match in (
        ({"cameras": {"top": None, "wrist": None}}, "looks through top, wrist, but Detour has top: 'wrist'"),
        (
            {"state": VectorInterface(("a", "b", "c"))},
            r"state has 3 dimensions \(a, b, c\), that of Detour 2",
        ),
        ({"action": VectorInterface(("a",))}, "action has 1 dimensions"),
    ):
        with pytest.raises(ConfigError, match=match):
            check_robot("Detour", ROBOT, replace(ROBOT, **trained))


def test_what_looks_wrong_is_said(caplog):
    metres = replace(ROBOT, state=replace(ROBOT.state, units=("m", "m")))
    trained = replace(
        ROBOT,
        state=replace(ROBOT.state, units=("mm", "m")),
        action=replace(ROBOT.action, names=("dy", "dx")),
        frequency=50,
    )
    check_robot("Detour", metres, trained)
    assert "x is in m, the policy's in mm" in caplog.text
    assert "dimensions are dx, dy, the policy's dy, dx" in caplog.text
    assert "runs at 10 Hz, the policy was trained at 50 Hz" in caplog.text
