"""A tiny pi-0 with everything it needs to meet a robot."""

import pytest
import torch

from tests.folders import guard_loading
from tests.parity.transformers_pi0 import perturb
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.pipeline import make_pipeline
from vla.policies.pi0.policy import Pi0Policy
from vla.transforms.normalize import FeatureStats, Statistics
from vla.transforms.tokenizer import train_tokenizer


def stats(dims: int, scale: float) -> FeatureStats:
    values = tuple(scale * (i + 1) for i in range(dims))
    low, high = tuple(-3 * v for v in values), tuple(3 * v for v in values)
    return FeatureStats(
        mean=tuple(v / 10 for v in values), std=values, min=low, max=high, q01=low, q99=high, count=100
    )


def make_robot_policy(**overrides) -> Pi0Policy:
    """State of 3, actions of 2 (the first a difference to the state), cameras top and wrist."""
    tokenizer = train_tokenizer(["pick up the cup", "left", "right"])
    torch.manual_seed(0)
    config = Pi0Config.tiny(
        cameras=("top", "wrist"), vocab_size=len(tokenizer), max_prompt_length=32, **overrides
    )
    policy = Pi0Policy(config)
    perturb(policy)
    statistics = Statistics({"state": stats(3, 1.0), "actions": stats(2, 0.5)}, "test", "test")
    policy.pipeline = make_pipeline(
        config,
        statistics=statistics,
        tokenizer=tokenizer,
        state_dim=3,
        action_dim=2,
        delta_mask=(True, False),
    )
    return policy.eval()


@pytest.fixture
def robot_ready() -> Pi0Policy:
    return make_robot_policy()


@pytest.fixture(autouse=True)
def _loading_changes_no_file(monkeypatch):
    guard_loading(monkeypatch)
