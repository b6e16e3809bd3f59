"""Requests of other libraries' clients, and of our own, become observations or are refused by name."""

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.robots import of_robot, tiny
from tests.transforms.test_robots import ARM
from vla.errors import ConfigError, ObservationError
from vla.serve.keys import KeyMap, read_text, read_vector
from vla.serve.limits.held import StateLimits
from vla.transforms.robots import load_robot

RNG = np.random.default_rng(0)


def image(height=8, width=10):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


REQUESTS = {
    "aloha": lambda: {
        "state": np.zeros(14),
        "images": {name: image() for name in ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")},
        "prompt": "pick up the cup",
    },
    "droid": lambda: {
        "observation/exterior_image_1_left": image(),
        "observation/wrist_image_left": image(),
        "observation/joint_position": np.arange(7, dtype=np.float32),
        "observation/gripper_position": np.array([7.0]),
        "prompt": "pick up the cup",
    },
    "libero": lambda: {
        "observation/image": image(),
        "observation/wrist_image": image(),
        "observation/state": np.arange(8.0),
        "prompt": "pick up the cup",
    },
}


@pytest.fixture(scope="module")
def policies():
    return {name: of_robot(name) for name in REQUESTS}


@pytest.fixture(scope="module")
def maps(policies):
    return {name: KeyMap(policy, load_robot(name)) for name, policy in policies.items()}


@pytest.fixture(scope="module")
def own():
    return KeyMap(tiny())


def ours(**changes):
    request = {
        "observation.images.top": image(),
        "observation.images.wrist": image(),
        "observation.state": np.zeros(3),
        "task": "left",
    }
    request |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in request.items() if value is not None}


@pytest.mark.parametrize("name", REQUESTS)
def test_openpi_s_clients_are_understood(policies, maps, name):
    chunk = policies[name].infer(maps[name].observation(REQUESTS[name]()))["actions"]
    assert chunk.shape[1] == load_robot(name).action_dim
    assert np.isfinite(chunk).all()


def test_every_value_comes_where_it_belongs(maps):
    request = REQUESTS["droid"]()
    made = maps["droid"].observation(request)
    assert made["observation.state"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert made["observation.state"].dtype == np.float32
    assert made["task"] == "pick up the cup"
    front = made["observation.images.base_0_rgb"]
    assert (front == request["observation/exterior_image_1_left"]).all()
    wrist = made["observation.images.left_wrist_0_rgb"]
    assert (wrist == request["observation/wrist_image_left"]).all()
    assert len(made) == 4


def test_the_image_is_turned_as_the_dataset_is(policies, maps):
    # LIBERO's clients turn images before they send them, so nothing turns them again.
    request = REQUESTS["libero"]()
    made = maps["libero"].observation(request)
    frame = policies["libero"]._guard.sample(made)
    seen = policies["libero"].pipeline.transforms[0].forward(frame)["images"]["base_0_rgb"]
    assert (seen.permute(1, 2, 0).numpy() == request["observation/image"]).all()


def test_channels_may_come_first_and_a_gripper_be_a_number(maps):
    request = REQUESTS["aloha"]()
    request["images"]["cam_high"] = request["images"]["cam_high"].transpose(2, 0, 1)
    assert maps["aloha"].observation(request)["observation.images.base_0_rgb"].shape == (8, 10, 3)
    request = REQUESTS["droid"]() | {"observation/gripper_position": np.float64(7)}
    assert maps["droid"].observation(request)["observation.state"][-1] == 7


def test_what_the_map_calls_ignorable_is_ignored_and_wrists_are_optional(maps):
    request = REQUESTS["aloha"]()
    request["images"] = {"cam_high": image(), "cam_low": "not even an image"}
    made = maps["aloha"].observation(request)
    assert [key for key in made if "images" in key] == ["observation.images.base_0_rgb"]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("aloha", {"images": {}}, "lacks images.cam_high"),
        ("aloha", {"images": {"cam_hihg": image()}}, "'images.cam_hihg'.*Did you mean 'images.cam_high'"),
        ("aloha", {"images": image()}, "'images' must map cam_high, .*got a ndarray"),
        ("aloha", {"images": {"cam_high": image(), 3: image()}}, "keys of 'images' are text, got 3"),
        ("aloha", {"state": np.zeros(13)}, r"state must hold 14 numbers \(left_waist.*got 13"),
        ("aloha", {"state": None}, "lacks state"),
        ("aloha", {"state": np.full(14, np.nan)}, "state holds nan in dimension 0 .'left_waist'"),
        ("droid", {"observation/joint_position": np.zeros(6)}, r"together \(joint_0.*got 6 \+ 1"),
        ("droid", {"observation/gripper_position": [np.inf]}, "gripper_position holds inf.*'gripper'"),
        ("droid", {"observation/gripper_position": None}, "lacks observation/gripper_position, the robot"),
        ("droid", {"observation/wrist_image_left": None}, "lacks observation/wrist_image_left"),
        ("libero", {"prompt": None}, "lacks prompt"),
        ("libero", {"prompt": "  "}, "prompt is empty"),
        ("libero", {"prompt": 3}, "prompt must be the instruction, one text, got a int"),
        ("libero", {"observation/images": image()}, "'observation/images'.*not a key of this robot"),
        ("libero", {"vla/seeds": 3}, "'vla/seeds' is a reserved key"),
        ("libero", {"task": "x"}, "'task' and 'prompt' are both the instruction"),
        ("libero", {"observation.state": np.zeros(8)}, "are both the state"),
        ("libero", {"observation.images.base_0_rgb": image()}, "are one camera"),
        ("libero", {4: 1}, "keys of a request are text, got 4"),
        ("libero", {"observation/image": image()[None]}, r"observation/image must be one image.*batch"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_client_s_words(maps, name, change, said):
    request = {key: value for key, value in (REQUESTS[name]() | change).items() if value is not None}
    with pytest.raises(ObservationError, match=said):
        maps[name].observation(request)


def test_our_own_keys(own):
    made = own.observation(ours())
    assert made.keys() == ours().keys()
    assert own.observation(ours(task=None, prompt="left"))["task"] == "left"
    assert "observation.images.wrist" not in own.observation(ours(observation__images__wrist=None))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"observation__image__top": image()}, "'observation.image.top'.*not a key of this robot"),
        ({"observation__state": None, "state": np.zeros(3)}, "'state'.*Did you mean 'observation.state'"),
        ({"observation__state": None}, "lacks observation.state"),
        ({"observation__images__top": None, "observation__images__wrist": None}, "has no image"),
        ({"task": None}, "lacks task"),
        ({"prompt": "left"}, "'task' and 'prompt' are both"),
    ],
)
def test_our_own_keys_are_held_to_it_too(own, change, said):
    with pytest.raises(ObservationError, match=said):
        own.observation(ours(**change))


def test_a_request_is_a_mapping(own):
    with pytest.raises(ObservationError, match=r"'observation.state'.*got a list"):
        own.observation([1])


def test_our_own_keys_work_with_a_map_too(maps):
    request = {
        "observation.images.agentview_image": image(),
        "observation.state": np.zeros(8),
        "task": "pick up the cup",
    }
    assert maps["libero"].observation(request).keys() == request.keys()


def test_states_outside_the_limits_are_refused():
    limits = StateLimits(("a", "b", "c"), np.array([-1, -1, -np.inf]), np.array([1, 1, np.inf]), "mine")
    keys = KeyMap(tiny(), limits=limits)
    keys.observation(ours(observation__state=[1, -1, 1e6]))
    with pytest.raises(ObservationError, match=r"observation.state holds 2 in dimension 1 \('b'\).*mine"):
        keys.observation(ours(observation__state=[0, 2, 0]))


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(sorted(REQUESTS)),
    extra=st.dictionaries(
        st.text("ab/._v", max_size=6)
        | st.sampled_from(["observation/image", "state", "cam_low", "task", "vla/seed", "observation.state"]),
        st.sampled_from([0, None, "x", b"x", [1], {}]),
        max_size=3,
    ),
    dropped=st.integers(0, 5),
)
def test_any_set_of_keys_is_mapped_ignored_or_refused_by_name(maps, name, extra, dropped):
    keys, request = maps[name], REQUESTS[name]()
    known = set(request) | {"task", "observation.state"}
    for key in list(request)[:dropped]:
        del request[key]
    request |= extra
    unknown = set(request) - known
    try:
        made = keys.observation(request)
    except ObservationError as error:
        told = str(error)
        assert not unknown or any(f"'{key}'" in told for key in unknown)
    else:
        assert not unknown
        assert made.keys() >= {"observation.state", "task"}


def test_what_the_client_is_told(maps, own):
    assert maps["aloha"].metadata == {"reset_pose": [0, -1.5, 1.5, 0, 0, 0]}
    assert maps["aloha"].keys["ignored"] == ["images.cam_low"]
    assert maps["droid"].keys["state"] == ["observation/joint_position", "observation/gripper_position"]
    assert own.metadata == {}
    assert own.keys["images"]["observation.images.top"] == "top"


def test_the_chunk_is_called_as_the_client_calls_it(tmp_path):
    serve = {"images": {"eye": "front"}, "state": "q", "actions": "plan", "ignore": ["clock"]}
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(ARM | {"serve": serve}))
    policy = of_robot("libero")
    with pytest.raises(ConfigError, match="a state of 3 values, the checkpoint reads 8"):
        KeyMap(policy, load_robot(tmp_path / "arm.yaml"))
    policy = tiny()
    with pytest.raises(ConfigError, match=r"fills the camera 'front' from 'eye', but .* only top, wrist"):
        KeyMap(policy, load_robot(tmp_path / "arm.yaml"))
    arm = ARM | {"serve": serve | {"images": {"eye": "top"}}, "cameras": {"top": ARM["cameras"]["base"]}}
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(arm))
    keys = KeyMap(policy, load_robot(tmp_path / "arm.yaml"))
    request = {"eye": image(), "q": [0, 0, 0], "prompt": "left", "clock": 3.5}
    made = keys.observation(request)
    assert keys.reply({"actions": 1, "text": "x"}, request) == {"plan": 1, "text": "x"}
    assert keys.reply({"actions": 1}, made) == {"actions": 1}


def test_vectors_and_texts():
    assert read_vector(3, "x").tolist() == [3]
    assert read_text(np.array(["a"]), "x") == "a"
    for value, said in (
        ("a", "x must be a vector of real numbers, got a str"),
        ([[1, 2]], r"got int64 \[1, 2\]. Leave out the axis of the batch"),
        ([1, [2]], "x is not a vector of numbers"),
        ([1e40], "x holds 1e.40 in dimension 0:"),
    ):
        with pytest.raises(ObservationError, match=said):
            read_vector(value, "x")
    with pytest.raises(ObservationError, match="half a character"):
        read_text("a\ud800", "x")
