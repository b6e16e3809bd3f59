"""The tiny policy that a server is measured with where no checkpoint is given."""

from pathlib import Path

import torch

from vla.bench.subject import fill
from vla.policies.registry import make_config, policy_entry
from vla.transforms.statistics import FeatureStats, Statistics
from vla.transforms.tokenizer import train_tokenizer

TASK = "pick up the cup"
DIMS = 7
CAMERAS = ("front", "left", "right")


def save_tiny(folder: Path) -> Path:
    """Save a tiny pi-0 of an arm with seven joints and three cameras, random but for its seed.

    Args:
        folder: Where; its parent must exist.
    """
    tokenizer = train_tokenizer([TASK])
    config = make_config(
        "pi0", {"cameras": CAMERAS, "vocab_size": len(tokenizer), "max_prompt_length": 32}, "tiny"
    )
    entry = policy_entry("pi0")
    policy = entry.policy(config)
    with torch.no_grad():
        fill(policy)
    ones = (1.0,) * DIMS
    low, high = (-3.0,) * DIMS, (3.0,) * DIMS
    feature = FeatureStats((0.0,) * DIMS, ones, low, high, low, high, 100)
    policy.pipeline = entry.make_pipeline(
        config,
        statistics=Statistics({"state": feature, "actions": feature}, "bench", "bench"),
        tokenizer=tokenizer,
        state_dim=DIMS,
        action_dim=DIMS,
    )
    policy.save_pretrained(folder)
    return folder
