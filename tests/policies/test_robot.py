"""Robot units in, robot units out: the way in and the way out are written out by hand here."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vla.errors import ShapeError
from vla.interface import RobotInterface, VectorInterface
from vla.policies.robot import RobotPolicy
from vla.transforms.base import Pipeline
from vla.transforms.cameras import RenameCameras
from vla.transforms.normalize import FeatureStats, Normalize


def make_observation(seed=0, **changes):
    random = np.random.default_rng(seed)
    return {
        "observation.images.top": random.integers(0, 256, (28, 28, 3), dtype=np.uint8),
        "observation.images.wrist": random.integers(0, 256, (28, 28, 3), dtype=np.uint8),
        "observation.state": random.normal(size=3),
        "task": "pick up the cup",
        **changes,
    }


@pytest.fixture
def robot(robot_ready):
    return RobotPolicy(robot_ready)


def test_infer_equals_the_transforms_by_hand(robot):
    observation, noise = make_observation(), np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
    actions = robot.infer(observation, noise=noise)["actions"]
    assert actions.shape == (6, 2)
    assert actions.dtype == np.float32

    images = np.stack([observation[f"observation.images.{slot}"] for slot in ("top", "wrist")])
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255 * 2 - 1)[None]
    std, mean = np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3])
    state = np.zeros((1, 8), dtype=np.float32)
    state[0, :3] = (observation["observation.state"] - mean) / (std + 1e-6)
    tokenizer = robot.pipeline.transforms[-2].tokenizer
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    ids = torch.tensor([[2, *encode("pick up the cup"), *encode("\n")]])
    chunk = robot.policy.sample_actions(
        pixels, torch.ones(1, 2, dtype=torch.bool), ids, torch.ones_like(ids), torch.from_numpy(state),
        noise=torch.from_numpy(noise)[None], action_dim_is_pad=torch.arange(8) >= 2,
    )[0, :, :2].numpy()  # fmt: skip
    want = chunk * (np.array([0.5, 1.0]) + 1e-6) + np.array([0.05, 0.1])
    want[:, 0] += observation["observation.state"][0]
    np.testing.assert_allclose(actions, want, atol=1e-5)


def test_cameras_may_come_under_the_robots_own_names(robot_ready):
    plain = RobotPolicy(robot_ready).infer(make_observation(), noise=np.zeros((6, 8)))["actions"]
    transforms = robot_ready.pipeline.transforms
    robot_ready.pipeline = Pipeline([RenameCameras({"cam_high": "top"}), *transforms])
    robot = RobotPolicy(robot_ready)
    observation = make_observation()
    observation["observation.images.cam_high"] = observation.pop("observation.images.top")
    np.testing.assert_array_equal(robot.infer(observation, noise=np.zeros((6, 8)))["actions"], plain)
    with pytest.raises(ShapeError, match=r"no camera 'cam_hi'.*Did you mean 'cam_high'"):
        robot.infer(make_observation(**{"observation.images.cam_hi": np.zeros((2, 2, 3), np.uint8)}))


def test_delta_actions_start_from_the_state_that_was_measured(robot_ready):
    """Also in a dimension that never varied in training, and that normalisation therefore sets to zero."""
    normalize = robot_ready.pipeline.find(Normalize)
    constant = FeatureStats(*((0.5, 0.0, 0.0),) * 6, count=100)
    constant = replace(constant, std=(0.0, 1.0, 1.0), min=(0.5, -1.0, -1.0), q01=(0.5, -1.0, -1.0))
    constant = replace(constant, max=(0.5, 1.0, 1.0), q99=(0.5, 1.0, 1.0))
    features = normalize.statistics.features | {"state": constant}
    changed = replace(normalize, statistics=replace(normalize.statistics, features=features))
    steps = [changed if step is normalize else step for step in robot_ready.pipeline.transforms]
    robot_ready.pipeline = Pipeline(steps)
    robot, noise = RobotPolicy(robot_ready), np.zeros((6, 8), np.float32)
    here, there = (
        robot.infer(make_observation(**{"observation.state": np.array([x, 0.0, 0.0])}), noise=noise)[
            "actions"
        ]
        for x in (0.5, 2.5)
    )
    np.testing.assert_allclose(there[:, 0] - here[:, 0], 2.0, atol=1e-5)
    np.testing.assert_allclose(there[:, 1], here[:, 1], atol=1e-5)


def test_a_batch_equals_its_observations_one_by_one(robot):
    observations = [make_observation(seed) for seed in range(3)]
    del observations[1]["observation.images.wrist"]
    noise = np.random.default_rng(2).normal(size=(3, 6, 8)).astype(np.float32)
    together = robot.infer_batch(observations, noise=noise)
    for index, observation in enumerate(observations):
        alone = robot.infer(observation, noise=noise[index])
        np.testing.assert_allclose(together[index]["actions"], alone["actions"], atol=1e-5)


def test_generator_decides_the_noise(robot):
    one, two, other = (
        robot.infer(make_observation(), generator=torch.Generator().manual_seed(s))["actions"]
        for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_generator_of_its_own_makes_a_chunk_independent_of_its_neighbours(robot):
    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    observations = [make_observation(seed) for seed in range(3)]
    together = robot.infer_batch(observations, generator=generators(5, 6, 7))
    for index, observation in enumerate(observations):
        alone = robot.infer(observation, generator=generators(5 + index)[0])
        np.testing.assert_allclose(together[index]["actions"], alone["actions"], atol=1e-5)
    with pytest.raises(ShapeError, match="2 generators for 3 observations"):
        robot.infer_batch(observations, generator=generators(1, 2))


def test_one_generator_draws_for_the_batch_as_it_always_has(robot):
    observations = [make_observation(seed) for seed in range(2)]
    noise = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3)).numpy()
    drawn = robot.infer_batch(observations, generator=torch.Generator().manual_seed(3))
    given = robot.infer_batch(observations, noise=noise)
    for one, other in zip(drawn, given, strict=True):
        np.testing.assert_array_equal(one["actions"], other["actions"])


def test_steps_of_sampling(robot):
    noise = np.random.default_rng(1).normal(size=(6, 8))
    one, ten, default = (
        robot.infer(make_observation(), noise=noise, num_steps=n)["actions"] for n in (1, 10, None)
    )
    np.testing.assert_array_equal(ten, default)
    assert not np.allclose(one, ten)


def test_a_session_of_a_policy_without_a_past_keeps_nothing(robot):
    session, noise = robot.start(), np.zeros((6, 8))
    expected = robot.infer(make_observation(1), noise=noise)["actions"]
    session.observe(make_observation(0))
    np.testing.assert_array_equal(session.infer(make_observation(1), noise=noise)["actions"], expected)
    assert not session._frames
    mixed = robot.infer_batch(
        [make_observation(1), (session, make_observation(1))], noise=np.zeros((2, 6, 8))
    )
    np.testing.assert_allclose(mixed[0]["actions"], mixed[1]["actions"], atol=1e-6)


def test_the_interface_knows_the_horizon(robot_ready):
    assert RobotPolicy(robot_ready).interface is None
    vector = VectorInterface(("x", "y", "z"))
    recorded = RobotInterface({"top": (28, 28)}, vector, VectorInterface(("dx", "dy")), 10.0)
    robot_ready.pipeline = Pipeline(robot_ready.pipeline.transforms, recorded)
    assert RobotPolicy(robot_ready).interface == replace(recorded, horizon=6)


def test_text_is_generated_on_request(robot):
    assert "text" not in robot.infer(make_observation())
    assert isinstance(robot.infer(make_observation(), text=True)["text"], str)


def test_pictures_of_another_size_are_resized(robot):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert robot.infer(make_observation(**{"observation.images.top": image}))["actions"].shape == (6, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation.images.topp": np.zeros((8, 8, 3), np.uint8)}, "no camera 'topp'.*Did you mean 'top'"),
        (
            {"observation.images.top": np.zeros((8, 8, 3), np.float32)},
            r"must be uint8 \[h, w, 3\], got float32",
        ),
        ({"observation.images.top": np.zeros((3, 8, 8), np.uint8)}, r"must be uint8 \[h, w, 3\]"),
        ({"observation.state": np.zeros(4)}, r"must be a vector \[3\], got \[4\]"),
        ({"observation.state": np.zeros((1, 3))}, "state"),
    ],
)
def test_observations_that_do_not_fit_the_checkpoint(robot, change, message):
    with pytest.raises((ShapeError, ValueError), match=message):
        robot.infer(make_observation(**change))


def test_an_observation_without_state_or_task(robot):
    observation = make_observation()
    del observation["observation.state"]
    with pytest.raises(ShapeError, match=r"lacks observation\.state"):
        robot.infer(observation)
