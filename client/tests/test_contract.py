"""The contract: read from the metadata, compared with what the robot expects."""

from __future__ import annotations

import pytest
from fake_server import contract

from vla_client.contract import Contract, Vector
from vla_client.errors import ConfigError, ServerError

ROBOT = Contract.of({"vla": contract()})


def test_everything_is_read():
    assert ROBOT.cameras == {"top": (4, 6), "wrist": None}
    assert ROBOT.state == Vector(("x", "y"), ("m", None), (-1.0, None), (1.0, None))
    assert ROBOT.action.units == ("m", "m")
    assert ROBOT.relative == (True, False)
    assert (ROBOT.frequency, ROBOT.horizon, ROBOT.past, ROBOT.max_prefix) == (20.0, 5, 0, 3)
    assert ROBOT.execute == 3
    assert (ROBOT.checkpoint, ROBOT.revision, ROBOT.level) == ("me/cup", None, "eager")
    assert (ROBOT.p50, ROBOT.p95) == (12.5, 20.0)
    assert ROBOT.offers == ("guided", "prefix")
    assert ROBOT.needs_task is True
    assert ROBOT.keys["task"] == "prompt"


def test_what_a_server_leaves_out_is_not_known():
    assert Contract.of({}) is None
    bare = Contract.of({"vla": {"protocol": 1, "more": 1}})
    assert bare == Contract()


@pytest.mark.parametrize(
    "expect",
    [
        {},
        {"cameras": ["wrist", "top"]},
        {"cameras": {"top": (4, 6), "wrist": (9, 9)}},
        {"state": ["x", "y"], "action": ("x", "y")},
        {"state": 2, "action": 2},
        {"state_units": ["m", None], "action_units": ["m", "m"]},
        {"frequency": 20, "horizon": 5, "checkpoint": "me/cup", "revision": None},
    ],
    ids=str,
)
def test_what_is_as_expected_passes(expect):
    ROBOT.check(expect)


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        ({"cameras": ["top"]}, "the cameras should be ['top'], the server says ['top', 'wrist']"),
        ({"cameras": {"top": (6, 4), "wrist": None}}, "the size of camera 'top' should be [6, 4]"),
        ({"state": ["y", "x"]}, "the names of the state should be ['y', 'x']"),
        ({"state": 3}, "the names of the state should be 3, the server says 2"),
        ({"action": 7}, "the names of the action"),
        ({"action_units": ["rad", "rad"]}, "the units of the action should be ['rad', 'rad']"),
        ({"frequency": 50}, "the frequency in Hz should be 50, the server says 20.0"),
        ({"checkpoint": "me/mug"}, "the checkpoint should be me/mug"),
        ({"frequenzy": 20}, "cannot expect 'frequenzy'. Did you mean 'frequency'?"),
    ],
)
def test_what_is_not_as_expected_is_refused(expect, words):
    with pytest.raises(ConfigError) as caught:
        ROBOT.check(expect)
    assert words in str(caught.value)


def test_a_server_that_does_not_say_is_not_what_is_expected():
    for expect in ({"frequency": 20}, {"cameras": ["top"]}, {"state": 2}):
        with pytest.raises(ConfigError, match="the server says"):
            Contract().check(expect)


def test_the_largest_change_per_step():
    def read(action):
        return Contract.of({"vla": contract(limits={"action": action})}).step

    assert read({"step": [0.5, None]}) == (0.5, None)
    assert read({}) is None
    for wrong in ([0.5], [0.5, 0], [0.5, -1.0], ["a", None], 3):
        with pytest.raises(
            ServerError, match=r"vla\.limits\.action\.step = .*; it must be a list of numbers"
        ):
            read({"step": wrong})
