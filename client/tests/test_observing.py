"""Observations that do not fit the robot's contract never leave the robot."""

from __future__ import annotations

import numpy as np
import pytest
from fake_server import contract, observation

from vla_client.contract import Contract
from vla_client.errors import ObservationError
from vla_client.observing import gray, prepare

ROBOT = Contract.of({"vla": contract()})
IMAGE = "observation.images.top"
OPENPI = {"images": {"cam_high": np.zeros((3, 4, 4), np.uint8)}, "state": np.zeros(2), "prompt": "x"}


class Tensor:
    def __array__(self, dtype=None, copy=None):
        return np.array([1.0, 2.0], np.float32)


class Picture:
    """As Pillow's images show themselves."""

    __array_interface__ = np.full((4, 6, 3), 7, np.uint8).__array_interface__ | {"data": b"\7" * 72}


def test_what_fits_is_sent_as_it_is():
    made = prepare(observation(), ROBOT)
    assert {*made} == {*observation()}
    assert made[IMAGE] is not None
    prepare(OPENPI, ROBOT)
    prepare(observation(**{IMAGE: b"\xff\xd8\xff..."}), ROBOT)
    prepare(observation(**{IMAGE: np.full((3, 4, 6), 0.5)}), ROBOT)
    prepare(observation(**{"observation.state": [0, 1.5]}), ROBOT)
    prepare(observation(**{"observation.images.wrist": None}), ROBOT, without=["wrist"])
    made = prepare(observation(**{"observation.state": Tensor(), "task": np.array("pick")}), ROBOT)
    assert isinstance(made["observation.state"], np.ndarray)
    assert made["task"] == "pick"
    assert prepare(observation(**{IMAGE: Picture()}), ROBOT)[IMAGE].tolist() == [[[7] * 3] * 6] * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observation.state": None}, "lacks observation.state"),
        ({"observation.state": np.zeros(3)}, "observation.state must hold 2 numbers (x, y), got 3"),
        ({"observation.state": np.zeros((1, 2))}, "observation.state must be a vector"),
        ({"observation.state": np.float32(1)}, "observation.state must be a vector"),
        ({"observation.state": "left"}, "observation.state must be a vector"),
        ({"observation.state": np.array([0, np.inf])}, "observation.state[1] is inf"),
        ({"observation.state": [0.0, float("nan")]}, "observation.state[1] is nan"),
        ({"observation.state": [[0.0], [0.0, 1.0]]}, "observation.state"),
        ({IMAGE: None}, f"lacks {IMAGE}, a camera of the server's policy"),
        ({IMAGE: np.zeros((4, 6), np.uint8)}, f"{IMAGE} must be uint8 [h, w, 3], got uint8 [4, 6]"),
        ({IMAGE: np.zeros((4, 6, 4), np.uint8)}, f"{IMAGE} must be uint8"),
        ({IMAGE: np.zeros((0, 6, 3), np.uint8)}, f"{IMAGE} must be uint8"),
        ({IMAGE: np.zeros((4, 6, 3), np.int64)}, f"{IMAGE} must be uint8"),
        ({IMAGE: np.zeros((4, 6, 3), np.uint16)}, f"{IMAGE} must be uint8"),
        ({IMAGE: np.full((4, 6, 3), 255.0)}, f"{IMAGE} holds floats outside [0, 1]"),
        ({IMAGE: np.full((4, 6, 3), np.nan)}, f"{IMAGE}[0, 0, 0] is nan"),
        (
            {IMAGE: np.frombuffer(b"\xff\xd8\xff\xe0....", np.uint8)},
            f"{IMAGE} is an array of the bytes of a JPEG or PNG, uint8 [8], as OpenCV's imencode makes it: "
            "send image.tobytes().",
        ),
        ({IMAGE: np.zeros(8, np.uint8)}, f"{IMAGE} must be uint8 [h, w, 3], got uint8 [8]"),
        ({IMAGE: b"GIF89a"}, f"{IMAGE} is bytes that are neither a JPEG nor a PNG"),
        (
            {"observation.images.tpo": np.zeros((4, 6, 3), np.uint8)},
            "no camera 'tpo', only top, wrist. Did you mean",
        ),
        ({"task": None}, "task must be the instruction, got None"),
        ({"task": " "}, "task must be the instruction"),
        ({"task": 3}, "task must be the instruction, got 3"),
        ({"vla/seed": 3}, "'vla/seed' is a reserved key"),
        ({"more": {"x": [np.nan]}}, "more.x[0] is nan"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_field_named(changes, words):
    with pytest.raises(ObservationError) as caught:
        prepare(observation(**changes), ROBOT)
    assert words in str(caught.value)


def test_keys_of_other_libraries_are_checked_as_the_contract_names_them():
    for changes, words in (
        ({"state": np.zeros(3)}, "state must hold 2 numbers (x, y), got 3"),
        ({"state": "left"}, "state must be a vector"),
        ({"images": {"cam_high": np.zeros((3, 4), np.uint8)}}, "images.cam_high must be uint8"),
        ({"images": {"cam_high": np.array([np.inf])}}, "images.cam_high[0] is inf"),
    ):
        with pytest.raises(ObservationError) as caught:
            prepare({**OPENPI, **changes}, ROBOT)
        assert words in str(caught.value)
    with pytest.raises(ObservationError, match="lacks state"):
        prepare({"stat": np.zeros(2)}, ROBOT)
    own = Contract.of({"vla": contract(keys=None)})
    with pytest.raises(ObservationError, match=r"lacks observation\.state"):
        prepare(OPENPI, own)


def test_things_that_are_no_observation_are_refused():
    for thing in (None, [1], "image"):
        with pytest.raises(ObservationError, match="An observation maps names"):
            prepare(thing, None)
    with pytest.raises(ObservationError, match="keys of an observation are text"):
        prepare({1: 2}, None)


def test_gray_observations_fit_their_contract():
    limits = {"state": {"low": [0.5, None], "high": [0.75, None]}}
    for robot in (ROBOT, Contract.of({"vla": contract(limits=limits)})):
        made = gray(robot)
        assert prepare(made, robot).keys() == made.keys()
        assert made[IMAGE].shape == (4, 6, 3)
    assert made["observation.state"].tolist() == [0.5, 0.0]
    with pytest.raises(ObservationError, match="does not say what the robot's state is"):
        gray(Contract())
