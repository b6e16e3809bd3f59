"""A real policy, tiny and untrained, meets the environment and a recording through its pipeline."""

import numpy as np
import pytest
import torch

from tests.data.make import make_dataset
from vla.data.dataset import LeRobotDataset
from vla.errors import ShapeError
from vla.eval.envs.detour import INSTRUCTIONS, MAX_STEP, STEP_LIMIT, DetourEnv
from vla.eval.open_loop import open_loop
from vla.eval.rollout import rollout
from vla.policies.pi0 import Pi0Config, Pi0Policy
from vla.policies.pi0.pipeline import make_pipeline
from vla.policies.robot import RobotPolicy
from vla.transforms.normalize import FeatureStats, Statistics
from vla.transforms.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def robot_policy():
    torch.manual_seed(0)
    config = Pi0Config.tiny(cameras=("top",), wrist_cameras=(), vocab_size=640)
    tokenizer = train_tokenizer(list(INSTRUCTIONS.values()), vocab_size=640)
    centre, spread = (0.5, 0.5), (0.2, 0.2)
    state = FeatureStats(centre, spread, (0.0, 0.0), (1.0, 1.0), (0.0, 0.0), (1.0, 1.0), 10)
    step = FeatureStats((0.0, 0.02), (0.02, 0.02), (-0.05,) * 2, (0.05,) * 2, (-0.05,) * 2, (0.05,) * 2, 10)
    statistics = Statistics({"state": state, "actions": step}, "test", "test")
    policy = Pi0Policy(config)
    policy.pipeline = make_pipeline(
        config, statistics=statistics, tokenizer=tokenizer, state_dim=2, action_dim=2, augment=False
    )
    return RobotPolicy(policy)


def test_episodes_run_and_the_generator_decides_them(robot_policy):
    def run(seed):
        noise = torch.Generator().manual_seed(seed)
        return rollout(DetourEnv, robot_policy, range(4), {"side": "left"}, execute=3, generator=noise)

    first, again, other = run(0), run(0), run(1)
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a.trajectory, b.trajectory)
        assert a.trajectory.shape != c.trajectory.shape or (a.trajectory != c.trajectory).any()
        assert 1 <= a.steps <= STEP_LIMIT
        assert np.hypot(*np.diff(a.trajectory, axis=0).T).max() <= MAX_STEP + 1e-6


def test_the_inference_form_runs_the_same_episodes(robot_policy):
    """The same ways up to rounding, so the same successes."""

    def run(policy):
        noise = torch.Generator().manual_seed(1)
        return rollout(
            DetourEnv, policy, range(5), {"side": None}, execute=3, batch_size=3, generator=noise, text=True
        )

    fast = RobotPolicy(robot_policy.policy, fast=True)
    want, made = run(robot_policy), run(fast)
    for one, other in zip(want, made, strict=True):
        assert (one.seed, one.success, one.steps, one.texts) == (
            other.seed,
            other.success,
            other.steps,
            other.texts,
        )
        np.testing.assert_allclose(other.trajectory, one.trajectory, atol=1e-5)
    assert (fast.last_level, robot_policy.last_level) == ("graph", "plain")
    assert fast.sampler.counts.built["graph"] >= 3  # fewer and fewer episodes run at once


def test_text_at_every_decision(robot_policy):
    result = rollout(DetourEnv, robot_policy, [0], execute=4, text=True)[0]
    assert len(result.texts) == len(result.decisions)


def test_open_loop(robot_policy, tmp_path):
    horizon = robot_policy.policy.config.action_horizon
    folder = make_dataset(tmp_path / "d", episodes=2, length=9, state_dim=2, action_dim=2)
    dataset = LeRobotDataset(folder, action_horizon=horizon)
    result = open_loop(robot_policy, dataset, cameras={"top": "observation.images.top"})
    assert result.steps == 18
    assert np.isfinite(result.mse).all()
    with pytest.raises(ShapeError, match="no camera 'side'"):
        open_loop(robot_policy, dataset, cameras={"side": "observation.images.top"})
