"""Chunks that continue another one, and the best of several: the sampler's inputs are written out by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from vla_client.continuation import Continuation

from tests.policies.conftest import make_robot_policy
from tests.policies.test_robot import make_observation
from vla.errors import ConfigError, ObservationError
from vla.objectives.guidance import ActionPrefix, Guidance, pull_weight
from vla.policies.flow.time import sampling_times
from vla.policies.robot import RobotPolicy

HORIZON, STEPS, GENTLE = 6, 4, 0.1
NOISE = np.random.default_rng(3).normal(size=(HORIZON, 8)).astype(np.float32)
LEFT = np.array([[0.4, 0.2], [0.5, 0.1], [0.7, -0.3], [0.8, -0.4]], dtype=np.float32)
EXP = [1.0, *(c * (math.exp(c) - 1) / (math.e - 1) for c in (3 / 4, 2 / 4, 1 / 4)), 0.0, 0.0]
"""Of H = 6, d = 1, end = 4."""


@pytest.fixture(scope="module")
def robot():
    return RobotPolicy(make_robot_policy())


def moved(x: float, seed: int = 0):
    return make_observation(seed, **{"observation.state": np.array([x, 0.0, 0.0])})


def in_model_space(actions: np.ndarray, x: float) -> np.ndarray:
    """The first action is a difference to the state; both are z-scores of means 0.05, 0.1 and deviations."""
    relative = actions - [x, 0.0]
    return (relative - [0.05, 0.1]) / (np.array([0.5, 1.0]) + 1e-6)


def tensors(robot, observation):
    """What the policy's `sample_actions` takes of an observation."""
    batch = robot._batch([robot._forward(robot._guard.sample(observation))])
    return {name: batch[name] for name in robot.policy.sampling_inputs or batch if name in batch}


def in_robot_units(chunk: torch.Tensor, x: float) -> np.ndarray:
    return chunk[:, :2].numpy() * (np.array([0.5, 1.0]) + 1e-6) + [0.05, 0.1] + [x, 0.0]


def naive(policy, seen, target, weights, most):
    """Euler steps, each with the gradient of the weighted error that is expected at the end."""
    absent = seen["action_dim_is_pad"][:, None]
    observation = [
        seen[name] for name in ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "state")
    ]
    with torch.no_grad():
        cache = policy.encode_prefix(*observation)
    x = start = torch.from_numpy(NOISE)[None]
    for tau, then in pairwise(sampling_times(STEPS, policy.config.numerics)):
        x = x.detach().requires_grad_()
        velocity = policy.velocity(x, torch.tensor([tau], dtype=torch.float64), cache)
        velocity = torch.where(absent, -start, velocity)
        expected = x + (1 - tau) * velocity
        error = (weights[:, None] * (target - expected)).detach()
        (pull,) = torch.autograd.grad((error * expected).sum(), x)
        pull = torch.where(absent, 0.0, pull)
        x = x + (then - tau) * (velocity + pull_weight(tau, most) * pull)
    return x.detach()


@pytest.mark.parametrize("x", [0.3, -1.5])
def test_what_is_left_guides_relative_to_the_state_that_is_observed_now(robot, x):
    target, weights = torch.zeros(1, HORIZON, 8), torch.tensor(EXP)
    target[0, :4, :2] = torch.from_numpy(in_model_space(LEFT, x))
    want = naive(robot.policy, tensors(robot, moved(x)), target, weights, GENTLE)[0]
    continuing = Continuation(LEFT, delay=1, max_weight=GENTLE)
    made = robot.infer(moved(x), noise=NOISE, num_steps=STEPS, continuing=continuing)["actions"]
    np.testing.assert_allclose(made, in_robot_units(want, x), atol=3e-6)
    free = robot.infer(moved(x), noise=NOISE, num_steps=STEPS)["actions"]
    assert np.abs(made - free)[:2].max() > 0.02


def test_actions_alone_take_the_pipeline_without_images_and_text(robot):
    sample = robot._guard.sample(moved(0.3)) | {"actions": torch.from_numpy(LEFT)}
    want = robot.pipeline.forward(sample)["actions"]
    made = robot.pipeline.forward_actions({name: sample[name] for name in ("state", "actions")})
    assert torch.equal(made, want)
    np.testing.assert_allclose(made[:, :2], in_model_space(LEFT, 0.3), atol=1e-5)


def test_a_longer_rest_than_a_chunk_is_cut_and_other_schedules_are_taken(robot):
    long = np.concatenate([LEFT, LEFT])
    target = torch.zeros(1, HORIZON, 8)
    target[0, :, :2] = torch.from_numpy(in_model_space(long[:HORIZON], 0.3))
    for schedule, weights in (
        ("linear", [1.0, 1.0, 0.8, 0.6, 0.4, 0.2]),
        ("ones", [1.0] * 6),
        ("zeros", [1.0, 1.0] + [0.0] * 4),
    ):
        guidance = Guidance(target, torch.tensor(weights)[:, None], GENTLE)
        seen = tensors(robot, moved(0.3))
        want = robot.policy.sample_actions(**seen, noise=torch.from_numpy(NOISE)[None], guidance=guidance)[0]
        continuing = Continuation(long, delay=2, schedule=schedule, max_weight=GENTLE)
        made = robot.infer(moved(0.3), noise=NOISE, continuing=continuing)["actions"]
        np.testing.assert_allclose(made, in_robot_units(want, 0.3), atol=1e-6)


def test_a_prefix_comes_back_in_robot_units(robot, monkeypatch):
    with pytest.raises(ConfigError, match=r"not trained to continue known steps\. It offers guided"):
        robot.infer(moved(0.3), continuing=Continuation(LEFT, delay=0, method="prefix"))
    monkeypatch.setattr(robot.policy.config, "max_action_prefix", 2, raising=False)
    assert (robot.continues_by, robot.max_prefix) == (("guided", "prefix"), 2)
    made = robot.infer(moved(0.3), noise=NOISE, continuing=Continuation(LEFT, delay=2, method="prefix"))
    np.testing.assert_allclose(made["actions"][:2], LEFT[:2], atol=1e-6)
    prefix = ActionPrefix(torch.from_numpy(in_model_space(LEFT, 0.3)).float()[None, :2])
    prefix = ActionPrefix(torch.nn.functional.pad(prefix.actions, (0, 6)))
    seen = tensors(robot, moved(0.3))
    want = robot.policy.sample_actions(**seen, noise=torch.from_numpy(NOISE)[None], action_prefix=prefix)[0]
    np.testing.assert_allclose(made["actions"], in_robot_units(want, 0.3), atol=1e-6)
    free = robot.infer(moved(0.3), noise=NOISE)["actions"]
    assert np.abs(free - made["actions"])[2:].max() > 1e-3
    ones = Continuation(LEFT, delay=2, method="prefix", schedule="ones")  # which guidance alone reads
    made_so = robot.infer(moved(0.3), noise=NOISE, continuing=ones)["actions"]
    np.testing.assert_array_equal(made_so, made["actions"])
    none = robot.infer(moved(0.3), noise=NOISE, continuing=Continuation(LEFT, delay=0, method="prefix"))
    np.testing.assert_array_equal(none["actions"], free)
    with pytest.raises(ConfigError, match=r"delay must be at most 2 by method='prefix'.*got 3"):
        robot.infer(moved(0.3), continuing=Continuation(LEFT, delay=3, method="prefix"))


def test_rows_of_a_batch_continue_each_its_own(robot, monkeypatch):
    """What is sampled freely is, to the bit, what it is without the others."""
    monkeypatch.setattr(robot.policy.config, "max_action_prefix", 2, raising=False)
    seen = [moved(x, seed) for seed, x in enumerate((0.1, 0.2, 0.3, 0.4, 0.5, 0.6))]
    continuing = [
        None,
        Continuation(LEFT, delay=1, max_weight=GENTLE),
        Continuation(LEFT, delay=2, method="prefix"),
        None,
        Continuation(LEFT[:2], delay=1, max_weight=GENTLE),
        Continuation(LEFT, delay=1, method="prefix"),
    ]
    noise = np.random.default_rng(4).normal(size=(6, HORIZON, 8)).astype(np.float32)
    together = robot.infer_batch(seen, noise=noise, continuing=continuing)
    for place, one in enumerate(continuing):
        alone = robot.infer(seen[place], noise=noise[place], continuing=one)
        np.testing.assert_allclose(together[place]["actions"], alone["actions"], atol=1e-5)
    free = robot.infer_batch([seen[0], seen[3]], noise=noise[[0, 3]])
    for place, one in zip((0, 3), free, strict=True):
        np.testing.assert_array_equal(together[place]["actions"], one["actions"])
    # One source of noise gives each row what it gives without continuing; one for each gives it its own.
    drawn = torch.randn(6, HORIZON, 8, generator=torch.Generator().manual_seed(5)).numpy()
    by_one = robot.infer_batch(seen, generator=torch.Generator().manual_seed(5), continuing=continuing)
    by_noise = robot.infer_batch(seen, noise=drawn, continuing=continuing)
    for one, other in zip(by_one, by_noise, strict=True):
        np.testing.assert_array_equal(one["actions"], other["actions"])
    each = [torch.Generator().manual_seed(seed) for seed in range(6)]
    by_each = robot.infer_batch(seen, generator=each, continuing=continuing)
    alone = robot.infer(seen[4], generator=torch.Generator().manual_seed(4), continuing=continuing[4])
    np.testing.assert_allclose(by_each[4]["actions"], alone["actions"], atol=1e-5)


def test_nothing_to_follow_is_the_free_chunk(robot):
    free = robot.infer(moved(0.3), noise=NOISE)["actions"]
    for nothing in (
        Continuation(LEFT[:0], delay=0),
        Continuation(LEFT, delay=0, schedule="zeros"),
    ):
        made = robot.infer(moved(0.3), noise=NOISE, continuing=nothing)["actions"]
        np.testing.assert_array_equal(made, free)


def test_a_session_continues_too(robot):
    continuing = Continuation(LEFT, delay=1, max_weight=GENTLE)
    made = robot.start().infer(moved(0.3), noise=NOISE, continuing=continuing)["actions"]
    np.testing.assert_array_equal(
        made, robot.infer(moved(0.3), noise=NOISE, continuing=continuing)["actions"]
    )


@pytest.mark.parametrize(
    ("continuing", "error", "said"),
    [
        (
            Continuation(LEFT[:, :1], delay=1),
            ObservationError,
            r"continuing.actions must be \[k, 2\].*\[4, 1\]",
        ),
        (Continuation(np.zeros((9, 2)), delay=6), ConfigError, "delay must be below the 6 steps.*got 6"),
        (LEFT, ConfigError, "must be a vla_client.continuation.Continuation or None, got a ndarray"),
        (
            Continuation(np.full((2, 2), 3e38), delay=1),
            ObservationError,
            "continuing.actions at step 0.*nothing finite",
        ),
    ],
)
def test_what_cannot_be_continued(robot, continuing, error, said):
    with pytest.raises(error, match=said):
        robot.infer(moved(0.3), continuing=continuing)


def test_a_batch_takes_one_entry_for_each_observation(robot):
    with pytest.raises(ConfigError, match="a Continuation or None for each observation"):
        robot.infer_batch([moved(0.3)], continuing=Continuation(LEFT, delay=1))
    with pytest.raises(ConfigError, match="Got 1 entries of continuing for 2 observations"):
        robot.infer_batch([moved(0.3)] * 2, continuing=[None])
    with pytest.raises(ObservationError, match=r"Observation 2 of 2: continuing\.actions must be"):
        robot.infer_batch([moved(0.3)] * 2, continuing=[None, Continuation(LEFT[:, :1], delay=1)])


def test_a_policy_without_a_flow_cannot_continue():
    robot = RobotPolicy(make_robot_policy(action_objective="regression"))
    assert robot.continues_by == ()
    with pytest.raises(ConfigError, match="cannot continue a chunk by method='guided': it has no flow"):
        robot.infer(moved(0.3), continuing=Continuation(LEFT, delay=1))


SEVERAL = np.random.default_rng(6).normal(size=(5, HORIZON, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def chunks(robot):
    return np.stack([robot.infer(moved(0.3), noise=noise)["actions"] for noise in SEVERAL])


def normalised(chunks):
    return (chunks - [0.3, 0.0]) / [0.5, 1.0]


def test_the_medoid_is_the_nearest_to_all_others(robot, chunks):
    several = normalised(chunks)
    distances = [sum(np.linalg.norm(one - other) for other in several) for one in several]
    for pick in ("medoid", None):
        made = robot.infer(moved(0.3), noise=SEVERAL, samples=5, pick=pick)["actions"]
        np.testing.assert_allclose(made, chunks[np.argmin(distances)], atol=1e-5)


def test_the_nearest_to_what_is_left(robot, chunks):
    left = chunks[3, :2] + 0.01
    free = Continuation(left, delay=0, schedule="zeros")
    for pick in ("nearest", None):
        made = robot.infer(moved(0.3), noise=SEVERAL, samples=5, pick=pick, continuing=free)["actions"]
        np.testing.assert_allclose(made, chunks[3], atol=1e-5)
    by_medoid = robot.infer(moved(0.3), noise=SEVERAL, samples=5, pick="medoid", continuing=free)["actions"]
    want = robot.infer(moved(0.3), noise=SEVERAL, samples=5, pick="medoid")["actions"]
    np.testing.assert_array_equal(by_medoid, want)


def test_a_function_picks(robot, chunks):
    def pick(actions, observation):
        np.testing.assert_allclose(actions, chunks, atol=1e-5)
        assert observation["task"] == "pick up the cup"
        return 2

    made = robot.infer(moved(0.3), noise=SEVERAL, samples=5, pick=pick)["actions"]
    np.testing.assert_allclose(made, chunks[2], atol=1e-5)
    with pytest.raises(ConfigError, match="pick must return the place of a chunk, 0 to 4, got 5"):
        robot.infer(moved(0.3), noise=SEVERAL, samples=5, pick=lambda actions, observation: 5)


def test_one_pass_through_images_and_text_serves_all(robot, monkeypatch):
    passes = []
    encode = robot.policy.encode_prefix
    monkeypatch.setattr(
        robot.policy, "encode_prefix", lambda *given, **options: passes.append(1) or encode(*given, **options)
    )
    robot.infer(moved(0.3), samples=8)
    assert len(passes) == 1


def test_several_of_each_row_continue_and_have_their_generators(robot):
    seen, left = [moved(0.1, 1), moved(0.2, 2)], Continuation(LEFT, delay=1, max_weight=GENTLE)
    each = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    together = robot.infer_batch(seen, generator=each, samples=3, continuing=[left, None])
    for place, (seed, one) in enumerate(((7, left), (8, None))):
        source = torch.Generator().manual_seed(seed)
        noise = np.stack([torch.randn(HORIZON, 8, generator=source).numpy() for _ in range(3)])
        alone = robot.infer(seen[place], noise=noise, samples=3, continuing=one)["actions"]
        np.testing.assert_allclose(together[place]["actions"], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 0}, "samples must be"),
        ({"samples": 2, "pick": "median"}, "pick must be one of medoid, nearest or a function, got 'median'"),
        ({"samples": 2, "pick": "nearest"}, "pick='nearest' compares chunks with the rest"),
    ],
)
def test_how_many_and_which(robot, options, said):
    with pytest.raises(ConfigError, match=said):
        robot.infer(moved(0.3), **options)


def test_noise_for_several(robot):
    with pytest.raises(ObservationError, match=r"noise must have shape \[b=3, a=6, m\]"):
        robot.infer(moved(0.3), noise=NOISE, samples=3)
