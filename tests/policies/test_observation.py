"""Every key and every kind of value of an observation: taken as one right thing, or refused in one sentence.

The tables are made of the kinds: each state below is the same three numbers, each image the same bytes, each
task the same text, so that what is taken must give the very same chunk.
"""

import decimal
import fractions
import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.policies.conftest import make_robot_policy
from tests.policies.test_robot import make_observation
from vla.errors import ActionError, ConfigError, ObservationError, ShapeError
from vla.interface import RobotInterface, VectorInterface
from vla.policies.robot import RobotPolicy
from vla.transforms.base import Pipeline
from vla.transforms.task import DefaultTask

STATE, TOP, TASK = "observation.state", "observation.images.top", "task"
NAMES = ("shoulder", "elbow", "gripper")
VALUES = [0.5, -1.0, 2.0]
NOISE = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
INTERFACE = RobotInterface(
    {"top": (28, 28), "wrist": None}, VectorInterface(NAMES), VectorInterface(("dx", "dy")), 10.0
)


@pytest.fixture(scope="module")
def policy():
    made = make_robot_policy()
    made.pipeline = Pipeline(made.pipeline.transforms, INTERFACE)
    return made


@pytest.fixture(scope="module")
def robot(policy):
    return RobotPolicy(policy)


def seen(**changes):
    return make_observation(**{STATE: np.array(VALUES), **changes})


def without(key):
    return {name: value for name, value in seen().items() if name != key}


@pytest.fixture(scope="module")
def expected(robot):
    return robot.infer(seen(), noise=NOISE)["actions"]


def acted(robot, observation):
    return robot.infer(observation, noise=NOISE)["actions"]


def refused(robot, observation, error=ObservationError):
    """The message by which every way to act refuses an observation; nothing is remembered of it."""
    messages = set()
    session = robot.start()
    ways = (
        lambda: robot.infer(observation, noise=NOISE),
        lambda: robot.infer_batch([observation]),
        lambda: session.infer(observation),
        lambda: session.observe(observation),
    )
    for way in ways:
        with pytest.raises(error) as caught:
            way()
        messages.add(str(caught.value))
    assert len(messages) == 1, messages
    assert not session._frames
    return messages.pop()


TAKEN_STATES = {
    "list": VALUES,
    "tuple": tuple(VALUES),
    **{f"numpy {kind}": np.array(VALUES, kind) for kind in ("f2", "f4", "f8", "longdouble", ">f4")},
    **{
        f"torch {kind}": torch.tensor(VALUES, dtype=kind)
        for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    },
    "with a gradient": torch.tensor(VALUES, requires_grad=True),
    "numbers of Python": [decimal.Decimal("0.5"), fractions.Fraction(-1), 2],
    "objects": np.array(VALUES, dtype=object),
    "tensors in a list": [torch.tensor(value) for value in VALUES],
    "a view": np.repeat(np.array(VALUES), 2)[::2],
    "mask of nothing": np.ma.array(VALUES, mask=[False] * 3),
}


@pytest.mark.parametrize("value", TAKEN_STATES.values(), ids=TAKEN_STATES)
def test_a_state_of_any_real_kind_is_the_same_state(robot, expected, value):
    np.testing.assert_array_equal(acted(robot, seen(**{STATE: value})), expected)


@pytest.mark.parametrize(
    "kind", [np.int8, np.int64, np.uint8, np.bool_, torch.int32, torch.uint8, torch.bool]
)
def test_whole_numbers_and_switches_are_numbers(robot, kind):
    made = torch.tensor([1, 0, 1]).to(kind) if isinstance(kind, torch.dtype) else np.array([1, 0, 1], kind)
    wanted = acted(robot, seen(**{STATE: [1.0, 0.0, 1.0]}))
    np.testing.assert_array_equal(acted(robot, seen(**{STATE: made})), wanted)


NOT_FINITE = {"nan": np.nan, "inf": np.inf, "minus inf": -np.inf, "null": None, "too large": 1e39}
CONTAINERS = {
    "list": list,
    "float64": lambda values: np.array(values, np.float64),
    "torch": lambda values: torch.tensor(np.array(values, np.float64)),
    "bfloat16": lambda values: torch.tensor(np.array(values, np.float64)).to(torch.bfloat16),
    "masked": lambda values: np.ma.masked_invalid(np.array(values, np.float64)),
}


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("value", NOT_FINITE.values(), ids=NOT_FINITE)
@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_nothing_that_is_not_finite_is_acted_on(robot, place, value, container):
    values = [*VALUES[:place], value, *VALUES[place + 1 :]]
    message = refused(robot, seen(**{STATE: container(values)}))
    assert f"dimension {place} ('{NAMES[place]}')" in message
    assert STATE in message


REFUSED_STATES = {
    "text": ("0.5 -1 2", "text"),
    "texts": (["0.5", "-1", "2"], "text"),
    "one text": ([0.5, "a", 2.0], "text"),
    "bytes": (b"abc", "text"),
    "ragged": ([[0.5], [-1.0, 2.0]], "list"),
    "complex": (np.array(VALUES) + 1j, "complex128"),
    "complex tensor": (torch.tensor(VALUES) + 1j, "complex64"),
    "an object": (object(), "object"),
    "objects": ([0.5, object(), 2.0], r"dimension 1 \('elbow'\)"),
    "a mapping": ({"elbow": 1.0}, "dict"),
    "a set": ({0.5, 1.0}, "set"),
    "none": (None, "None"),
    "dates": (np.array(["2020-01-01"] * 3, "M8[D]"), "datetime64"),
    "records": (np.zeros(3, [("a", "f4")]), "real numbers"),
    "on meta": (torch.zeros(3, device="meta"), "Tensor"),
    "sparse": (torch.tensor(VALUES).to_sparse(), "Tensor"),
    "a number": (0.5, r"vector \[3\].*got \[\]"),
    "too narrow": (VALUES[:2], r"\[3\] \(shoulder, elbow, gripper\), got \[2\]"),
    "too wide": ([*VALUES, 1.0], r"got \[4\]"),
    "nothing": ([], r"got \[0\]"),
    "a batch of one": ([VALUES], r"got \[1, 3\]. Leave out the axis of the batch"),
    "a batch of two": ([VALUES] * 2, r"got \[2, 3\]"),
    "upright": (np.array(VALUES)[:, None], r"got \[3, 1\]"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED_STATES.values(), ids=REFUSED_STATES)
def test_states_that_are_none(robot, value, message):
    said = refused(robot, seen(**{STATE: value}))
    assert said.startswith(STATE)
    assert re.search(message, said), said


PIXELS = seen()[TOP]
TAKEN_IMAGES = {
    "torch": torch.from_numpy(PIXELS),
    "pillow": Image.fromarray(PIXELS),
    "fortran order": np.asfortranarray(PIXELS),
    "lists": PIXELS.tolist(),
    "read only": np.frombuffer(PIXELS.tobytes(), np.uint8).reshape(PIXELS.shape),
    "a view": np.repeat(PIXELS, 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("value", TAKEN_IMAGES.values(), ids=TAKEN_IMAGES)
def test_bytes_are_an_image_wherever_they_lie(robot, expected, value):
    np.testing.assert_array_equal(acted(robot, seen(**{TOP: value})), expected)


SCALED = PIXELS.astype(np.float32) / 255
REFUSED_IMAGES = {
    **{f"{kind}": (PIXELS.astype(kind), rf"got {kind}") for kind in ("int8", "uint16", "int64", "bool")},
    "floats": (SCALED, r"float32 \[28, 28, 3\]. Values in \[0, 1\] become bytes by"),
    "float tensor": (torch.from_numpy(SCALED), r"float32.*\(255 \* image\)\.round\(\)\.to\(torch\.uint8\)"),
    "nan": (np.where(SCALED > 0.5, np.nan, SCALED), "not finite"),
    "lists of more than bytes": ((PIXELS.astype(int) + 1).tolist(), r"got int64 \[28, 28, 3\]"),
    "lists of less": ((PIXELS.astype(int) - 1).tolist(), "got int64"),
    "lists of fractions": (SCALED.tolist(), r"by \(255 \* np\.asarray\(image\)\)\.round\(\)\.astype"),
    "channels first": (PIXELS.transpose(2, 0, 1), r"\[3, 28, 28\]. The channels come last: image\.transp"),
    "channels first, torch": (
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        r"come last: image\.permute\(1, 2, 0\)",
    ),
    "grey": (PIXELS[..., 0], r"\[28, 28\]. It has no colours"),
    "one channel": (PIXELS[..., :1], "It has no colours"),
    "grey, pillow": (Image.fromarray(PIXELS[..., 0]), "It has no colours"),
    "alpha": (np.dstack([PIXELS, PIXELS[..., 0]]), "alpha channel"),
    "a batch of one": (PIXELS[None], "Leave out the axis of the batch"),
    "empty": (PIXELS[:0], "It is empty"),
    "none": (None, "NoneType. Leave out a camera that is not there"),
    "a path": ("image.png", r"text \[\]"),
    "encoded": (b"\x89PNG", "text"),
    "an object": (object(), "object"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED_IMAGES.values(), ids=REFUSED_IMAGES)
def test_images_that_are_none(robot, value, message):
    said = refused(robot, seen(**{TOP: value}))
    assert said.startswith(f"{TOP} must be uint8 [h, w, 3]")
    assert re.search(message, said), said


TEXT = seen()[TASK]
TAKEN_TASKS = {
    "list": [TEXT],
    "tuple": (TEXT,),
    "numpy, one": np.array([TEXT]),
    "numpy, scalar": np.array(TEXT),
    "numpy, objects": np.array([TEXT], dtype=object),
    "numpy's own text": np.str_(TEXT),
}


@pytest.mark.parametrize("value", TAKEN_TASKS.values(), ids=TAKEN_TASKS)
def test_one_text_is_the_task_however_it_is_wrapped(robot, expected, value):
    np.testing.assert_array_equal(acted(robot, seen(task=value)), expected)


REFUSED_TASKS = {
    "bytes": b"pick up the cup",
    "none": None,
    "a number": 3,
    "a float": np.nan,
    "yes": True,
    "several": ["pick up the cup", "left"],
    "several, numpy": np.array(["left", "right"]),
    "no text": [],
    "none in a list": [None],
    "bytes in numpy": np.array([b"left"]),
    "a list in a list": [["left"]],
    "a mapping": {"task": "left"},
    "a set": {"left"},
    "a tensor": torch.tensor([1]),
    "half a character": "pick \ud83d up",
}


@pytest.mark.parametrize("value", REFUSED_TASKS.values(), ids=REFUSED_TASKS)
def test_tasks_that_are_none(robot, value):
    message = refused(robot, seen(task=value))
    assert message.startswith("The observation's task ")


@pytest.mark.parametrize("value", ["", " ", "\n\t ", [""], ("  ",), np.array("")])
def test_an_empty_task_is_answered_as_a_missing_one(policy, robot, expected, value):
    assert "task is empty" in refused(robot, seen(task=value))
    assert "lacks task" in refused(robot, without(TASK))
    described = make_robot_policy()
    steps = [DefaultTask(TEXT), *described.pipeline.transforms]
    described.pipeline = Pipeline(steps, INTERFACE)
    knows = RobotPolicy(described)
    for observation in (seen(task=value), without(TASK)):
        np.testing.assert_array_equal(acted(knows, observation), expected)
    assert refused(knows, seen(task=None)) == refused(robot, seen(task=None))


@pytest.mark.parametrize(
    "value",
    [None, "observation", 3, [seen()], [seen(), seen()], np.zeros(3), (seen(),), ({}, {}), [], object()],
)
def test_infer_takes_one_observation(robot, value):
    with pytest.raises(ObservationError):
        robot.infer(value)


@pytest.mark.parametrize("value", [[], (), iter(()), seen(), "ab", None, 3, [None], [("a", seen())]])
def test_infer_batch_takes_a_list_of_observations(robot, value):
    with pytest.raises(ObservationError):
        robot.infer_batch(value)


def test_a_session_acts_with_its_own_policy_alone(policy, robot):
    with pytest.raises(ObservationError, match="session of this policy"):
        robot.infer_batch([(RobotPolicy(policy).start(), seen())])


def test_a_pair_may_be_a_list(robot, expected):
    chunks = robot.infer_batch([[robot.start(), seen()]], noise=NOISE[None])
    np.testing.assert_array_equal(chunks[0]["actions"], expected)
    with pytest.raises(ObservationError, match=r"A pair in infer_batch .* got \(Session\)"):
        robot.infer_batch([[robot.start()]])


def test_the_bad_one_of_several_is_named(robot):
    with pytest.raises(ObservationError, match=r"Observation 2 of 3: observation\.state holds nan"):
        robot.infer_batch([seen(), seen(**{STATE: [np.nan, 0, 0]}), seen()])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("top", TOP),
        ("observation.image.top", TOP),
        ("observation.image_top", None),
        ("observation.Images.top", TOP),
        ("observation_images_top", TOP),
    ],
)
def test_a_camera_under_nearly_its_name_is_not_lost(robot, given, meant, caplog):
    """It would be black otherwise, and the policy would act without it."""
    observation = without(TOP) | {given: PIXELS}
    if meant is None:
        acted(robot, observation)
        assert f"'{given}' is not read" in caplog.text
        return
    assert f"Did you mean '{meant}'" in refused(robot, observation)


def test_keys_of_missing_values_are_guessed(robot):
    assert "lacks observation.state" in refused(robot, without(STATE) | {"observation.sate": VALUES})
    told = refused(robot, without(STATE) | {"observation.sate": VALUES})
    assert told.endswith("Did you mean 'observation.state' by 'observation.sate'?")
    openpis = {"observation/image": PIXELS, "observation/state": VALUES, "prompt": "left"}
    told = refused(robot, openpis)
    assert told.endswith("Did you mean 'observation.state' by 'observation/state' and 'task' by 'prompt'?")
    assert "keys are not nested" in refused(robot, {"observation": {"state": VALUES}, "task": "left"})


def test_what_is_read_already_is_no_guess(robot):
    assert "Did you mean" not in refused(robot, without(STATE))
    assert "Did you mean" not in refused(robot, seen(**{"observation.images.left": PIXELS}))


def test_what_nothing_reads_is_left_out_with_one_line(policy, expected, caplog):
    robot = RobotPolicy(policy)
    more = {"timestamp": 0.1, "observation.effort": [np.nan], "next.reward": None, "frame_index": 3}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(acted(robot, seen(**more)), expected)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(more)
    assert all(any(f"'{key}' is not read" in line for line in lines) for key in more)


@pytest.mark.parametrize("key", [3, None, ("observation", "state"), b"task"], ids=str)
def test_keys_are_text(robot, key):
    assert "keys of an observation are text" in refused(robot, seen() | {key: 1})


BAD_NOISE = {
    "nan": np.where(NOISE[2, 3] == NOISE, np.nan, NOISE),
    "inf": NOISE * np.float64(1e300),
    "of one": NOISE[None],
    "a vector": NOISE[0],
    "a number": 1.0,
    "text": "noise",
    "none inside": [[None] * 8] * 6,
    "complex": NOISE + 1j,
    "empty": NOISE[:0],
    "ragged": [[1.0], [1.0, 2.0]],
    "too narrow": NOISE[:, :7],
}


@pytest.mark.parametrize("noise", BAD_NOISE.values(), ids=BAD_NOISE)
def test_noise_is_finite_and_of_the_chunks_shape(robot, noise):
    for way in (robot.infer, robot.start().infer):
        with pytest.raises(ShapeError, match="noise"):
            way(seen(), noise=noise)


@pytest.mark.parametrize("made", [list, torch.tensor, lambda x: x.astype(np.float64), lambda x: x.tolist()])
def test_noise_of_any_kind_is_the_same_noise(robot, expected, made):
    np.testing.assert_array_equal(robot.infer(seen(), noise=made(NOISE))["actions"], expected)
    together = robot.infer_batch([seen(), seen()], noise=made(np.stack([NOISE, NOISE])))
    np.testing.assert_allclose(together[1]["actions"], expected, atol=1e-5)
    with pytest.raises(ObservationError, match="b=2"):
        robot.infer_batch([seen(), seen()], noise=made(np.stack([NOISE] * 3)))


@pytest.mark.parametrize(
    "steps", [0, -1, True, False, 10.0, 2.5, "10", np.nan, 10**9, 10**30, [10], torch.ones(2)]
)
def test_steps_of_sampling_are_a_whole_number(robot, steps):
    with pytest.raises(ConfigError, match="num_steps must be a whole number from 1 to"):
        robot.infer(seen(), num_steps=steps)


def test_whole_numbers_of_other_libraries_are_steps_too(robot, expected):
    for steps in (10, np.int64(10), torch.tensor(10)):
        np.testing.assert_array_equal(robot.infer(seen(), noise=NOISE, num_steps=steps)["actions"], expected)


@pytest.mark.parametrize("generator", [0, "seed", np.random.default_rng(0), [0], [None], torch.Generator])
def test_a_generator_is_torchs(robot, generator):
    with pytest.raises(ConfigError, match=r"generator must be a torch\.Generator"):
        robot.infer(seen(), generator=generator)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_broken_weights_move_a_robot(bad):
    policy = make_robot_policy()
    policy.pipeline = Pipeline(policy.pipeline.transforms, INTERFACE)
    robot = RobotPolicy(policy)
    with torch.no_grad():
        policy.model.action_out_proj.bias[1] = bad
    with pytest.raises(ActionError, match=r"at step 0, dimension 0 \('dx'\), so no action is returned"):
        robot.infer(seen())


def test_a_state_from_which_nothing_finite_comes_is_refused(robot):
    normalize = next(one for one in robot.pipeline.transforms if one.name == "normalize")
    narrow = replace(normalize.statistics.features["state"], std=(1e-30,) * 3)
    features = normalize.statistics.features | {"state": narrow}
    changed = replace(
        normalize,
        statistics=replace(normalize.statistics, features=features),
        formula=replace(normalize.formula, name="openpi", epsilon=0.0),
    )
    policy = make_robot_policy()
    policy.pipeline = Pipeline([changed if one is normalize else one for one in robot.pipeline.transforms])
    with pytest.raises(ObservationError, match="nothing finite comes of it"):
        RobotPolicy(policy).infer(seen(**{STATE: [3e37, 0, 0]}))


def test_a_failed_answer_leaves_the_session_as_it_was(policy, monkeypatch):
    robot = RobotPolicy(policy)
    robot.window = replace(robot.window, state=(-1, 0))
    session = robot.start()
    session.observe(seen())
    before = list(session._frames)

    def fail(*_):
        raise ActionError("nothing finite")

    monkeypatch.setattr(robot, "_sample", fail)
    monkeypatch.setattr("vla.policies.robot.collate", lambda samples: {})
    monkeypatch.setattr(robot, "_forward", lambda frame: frame)
    with pytest.raises(ActionError, match="nothing finite"):
        session.infer(seen())
    assert len(before) == 1
    assert list(session._frames) == before
