"""openpi's checkpoints with a robot's description: its cameras, its statistics, its instruction."""

import json
from pathlib import Path

import numpy as np
import pytest

import vla
from vla.checkpoints.convert import convert
from vla.errors import StatisticsError
from vla.policies.registry import make_policy
from vla.transforms.tokenizer import train_tokenizer

ROBOTS = Path(__file__).parents[2] / "recipes" / "robots"


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny openpi checkpoint with the statistics of two robots."""
    tokenizer = train_tokenizer(["put the fork away"])
    overrides = {"vocab_size": len(tokenizer), "max_state_dim": 32, "max_action_dim": 32}
    make_policy("pi0", overrides, preset="tiny").save_pretrained(tmp_path / "base")
    convert(tmp_path / "base", tmp_path / "openpi", "openpi")
    tokenizer.save_pretrained(tmp_path / "openpi")
    for asset, dims in (("droid", 8), ("trossen", 14)):
        stats = {"mean": [0.1] * dims, "std": [0.5] * dims, "q01": [-1.0] * dims, "q99": [1.0] * dims}
        folder = tmp_path / "openpi" / "assets" / asset
        folder.mkdir(parents=True)
        content = {"norm_stats": {"state": stats, "actions": stats}}
        (folder / "norm_stats.json").write_text(json.dumps(content))
    return tmp_path / "openpi"


def test_a_robot_chooses_its_statistics(checkpoint):
    image = {"observation.images.base_0_rgb": np.zeros((180, 320, 3), dtype=np.uint8), "task": "put away"}
    for robot, dims in (("droid", 8), ("aloha", 14)):
        policy = vla.load(checkpoint, robot=ROBOTS / f"{robot}.yaml")
        assert policy.infer({**image, "observation.state": np.zeros(dims)})["actions"].shape == (6, dims)


def test_without_one_the_robots_are_listed(checkpoint):
    with pytest.raises(StatisticsError, match=r"droid.*trossen"):
        vla.load(checkpoint)
