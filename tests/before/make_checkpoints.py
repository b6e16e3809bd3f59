"""Policy folders for `make_samples.py`, what they answered, and what conversions made of them."""

import numpy as np
import torch
from make_common import SMALL, TASKS, command, random_statistics
from stored import write_arrays


def strengthen(policy, seed):
    """Move every weight so far that no part of the observation leaves the actions as they are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.25)
    return policy.eval()


def random_observation(cameras, state_dim, action_shape, seed, task=None):
    rng = np.random.default_rng(seed)
    observation = {
        f"observation.images.{camera}": rng.integers(0, 256, size=(24, 40, 3), dtype=np.uint8)
        for camera in cameras
    }
    observation["observation.state"] = rng.uniform(0.1, 0.9, state_dim).astype(np.float32)
    if task is not None:
        observation["task"] = task
    return observation, rng.normal(size=action_shape).astype(np.float32)


def write_inference(path, folder, cameras, state_dim, task=None, **options):
    """Store an observation and its chunk, which must depend on every part of the observation."""
    import vla

    robot = vla.load(folder, **options)
    config = robot.policy.config
    shape = (config.action_horizon, config.max_action_dim)
    observation, noise = random_observation(cameras, state_dim, shape, seed=len(str(path.name)), task=task)
    actions = robot.infer(observation, noise=noise)["actions"]
    least = 5e-5 * np.abs(actions).max()  # five times what the test allows
    for key, value in observation.items():
        other = "put the cup on the plate" if key == "task" else value[..., ::-1].copy()
        moved = robot.infer({**observation, key: other}, noise=noise)["actions"]
        assert np.abs(moved - actions).max() > least, (path, key)
    write_arrays(path, {**observation, "noise": noise, "actions": actions})


def make_pi0(folder, robots):
    """pi-0 with a robot's transforms, relative joints, z-scores and augmentation."""
    import vla
    from vla.policies.pi0.pipeline import make_pipeline
    from vla.transforms import Pipeline, train_tokenizer
    from vla.transforms.robots import load_robot

    tokenizer = train_tokenizer(TASKS, 280)
    config = vla.Pi0Config(
        **SMALL,
        cameras=("base", "wrist", "spare"),
        wrist_cameras=("wrist",),
        vocab_size=len(tokenizer),
        max_prompt_length=20,
        insulate_backbone=True,
        solver="heun",
        num_inference_steps=3,
        tau_alpha=1.2,
        tau_scale=0.9,
        min_period=0.01,
        max_period=2.0,
        action_loss_weight=2.0,
        text_loss_weight=0.5,
        draws_per_observation=2,
        loss_includes_padding=True,
        actions_see_response=True,
        max_response_length=3,
        numerics="transformers",
    )
    torch.manual_seed(0)
    policy = strengthen(vla.Pi0Policy(config), seed=1)
    robot = load_robot(robots / "test_arm.yaml")
    rest = make_pipeline(
        config,
        statistics=random_statistics(3, 3, 2),
        tokenizer=tokenizer,
        state_dim=3,
        action_dim=3,
        delta_mask=robot.delta_mask,
        augment=True,
    )
    policy.pipeline = Pipeline([*robot.transforms(), *rest.transforms])
    policy.save_pretrained(folder / "pi0")
    write_inference(folder / "pi0.npz", folder / "pi0", ["front", "hand"], 3)


def make_pi05(folder):
    """pi-0.5 with the state in its text, quantiles of openpi's rule, and weights in several files."""
    import vla
    from vla.policies.pi05.pipeline import make_pipeline
    from vla.transforms import train_tokenizer
    from vla.transforms.normalize import OPENPI_RULE

    tokenizer = train_tokenizer(TASKS, 280)
    config = vla.Pi05Config(
        **SMALL,
        cameras=("top", "wrist"),
        vocab_size=len(tokenizer),
        max_prompt_length=72,
        num_inference_steps=4,
        solver="midpoint",
        numerics="float64",
    )
    torch.manual_seed(3)
    policy = strengthen(vla.Pi05Policy(config), seed=4)
    policy.pipeline = make_pipeline(
        config,
        statistics=random_statistics(4, 2, 5),
        tokenizer=tokenizer,
        state_dim=4,
        action_dim=2,
        delta_mask=(False, True),
        rule=OPENPI_RULE,
    )
    policy.save_pretrained(folder / "pi05", max_shard_size="20KB")
    write_inference(folder / "pi05.npz", folder / "pi05", ["top", "wrist"], 4, "open the drawer")


def make_plain_pi0(folder):
    """pi-0 without a robot's transforms, which every other library can hold."""
    import vla
    from vla.policies.pi0.pipeline import make_pipeline
    from vla.transforms import train_tokenizer

    tokenizer = train_tokenizer(TASKS, 280)
    config = vla.Pi0Config(
        **SMALL,
        cameras=("top", "wrist"),
        vocab_size=len(tokenizer),
        max_prompt_length=24,
        num_inference_steps=5,
    )
    torch.manual_seed(6)
    policy = strengthen(vla.Pi0Policy(config), seed=7)
    policy.pipeline = make_pipeline(
        config,
        statistics=random_statistics(3, 2, 8),
        tokenizer=tokenizer,
        state_dim=3,
        action_dim=2,
        delta_mask=(True,),
        augment=False,
    )
    policy.save_pretrained(folder / "plain")
    write_inference(folder / "plain.npz", folder / "plain", ["top"], 3, "fold the towel")


def make_converted(folder, checkpoints):
    for name, format in (
        ("plain", "lerobot"),
        ("plain", "transformers"),
        ("plain", "openpi"),
        ("pi05", "lerobot"),
        ("pi05", "openpi"),
    ):
        command(["convert", str(checkpoints / name), str(folder / f"{name}_{format}"), "--to", format])
