"""Tiny policies for the server's tests: one with keys of its own, and one for every shipped robot."""

import torch

from tests.policies.conftest import make_robot_policy, stats
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.pipeline import make_pipeline
from vla.policies.pi0.policy import Pi0Policy
from vla.policies.robot import RobotPolicy
from vla.transforms.normalize import Statistics
from vla.transforms.robots import apply_robot, load_robot
from vla.transforms.tokenizer import train_tokenizer


def tiny(**overrides) -> RobotPolicy:
    """State of 3, actions of 2 (the first a difference to the state), cameras top and wrist, 6 steps."""
    return RobotPolicy(make_robot_policy(**overrides))


def of_robot(name: str) -> RobotPolicy:
    """A policy of random weights in a shipped robot's conventions."""
    robot = load_robot(name)
    tokenizer = train_tokenizer(["pick up the cup"])
    torch.manual_seed(0)
    config = Pi0Config.tiny(
        cameras=tuple(robot.about.cameras),
        vocab_size=len(tokenizer),
        max_prompt_length=32,
        max_state_dim=16,
        max_action_dim=16,
    )
    policy = Pi0Policy(config)
    widths = {"state_dim": robot.state_dim, "action_dim": robot.action_dim}
    statistics = Statistics(
        {"state": stats(robot.state_dim, 0.1), "actions": stats(robot.action_dim, 0.1)}, "test", "test"
    )
    pipeline = make_pipeline(config, statistics=statistics, tokenizer=tokenizer, **widths)
    policy.pipeline = apply_robot(pipeline, robot)
    return RobotPolicy(policy.eval())
