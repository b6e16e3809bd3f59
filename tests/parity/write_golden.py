"""Goldens of other sizes than the published ones, whose truth is computed by other implementations.

Checkpoints are put together by hand (`tests.weights.published`), never by this library's writers.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests.parity.joint_attention import joint_forward
from tests.parity.transformers_pi0 import make_pair, perturb, to_their_prefix
from tests.weights.orbax_tree import write_tree
from tests.weights.published import as_jax, renamed
from vla.nn.embeddings import sinusoidal_embedding
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy

PUBLISHED_VISION = {
    "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 16,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
SIZES = {
    "openpi_jax_pi0": {
        "cameras": ("base_0_rgb", "wrist_0_rgb"), "action_horizon": 5, "depth": 3, "max_state_dim": 7,
        "max_action_dim": 7, "vlm": {"width": 24, "mlp_dim": 40},
    },
    "openpi_jax_pi05": {
        "cameras": ("only",), "action_horizon": 3, "num_heads": 6, "num_kv_heads": 2, "head_dim": 4,
        "expert": {"width": 20, "mlp_dim": 12},
    },
    "lerobot_pi0": {
        "cameras": ("front", "left", "right", "back"), "action_horizon": 4, "max_state_dim": 5,
        "vision": PUBLISHED_VISION, "num_kv_heads": 1, "min_period": 0.5,
    },
    "lerobot_pi05": {
        "cameras": ("front", "wrist"), "action_horizon": 9, "max_action_dim": 11, "vocab_size": 70,
        "vision": PUBLISHED_VISION, "num_kv_heads": 1, "head_dim": 12,
    },
}  # fmt: skip
"""What differs from `tiny()`. min_period: transformers' PI0 rounds the phase of short periods its own way."""

LENGTHS = (3, 11, 1, 6)
NUM_TOKENS = 13
STEPS = (1, 3, 7)


def write_golden(name: str, folder: Path) -> None:
    """Write a random checkpoint and its `io.npz` to a folder to be made."""
    folder.mkdir(parents=True)
    sizes = {"max_prompt_length": NUM_TOKENS, **SIZES[name]}
    if name == "lerobot_pi0":
        policy, theirs = make_pair(seed=3, **sizes)
        truth = transformers_truth(policy.config, theirs)
    else:
        family = Pi05Policy if name.endswith("pi05") else Pi0Policy
        torch.manual_seed(3)
        policy = family(family.config_class.tiny(**sizes)).eval()
        perturb(policy, seed=3)
        truth = joint_truth(policy, exact_time if name.startswith("lerobot") else sinusoidal_embedding)
    arrays = make_inputs(policy.config)
    batch = make_batch(policy.config, arrays)
    is_jax = name.startswith("openpi_jax")
    with torch.no_grad():
        arrays |= truth(batch, is_jax)
    if is_jax:
        _write_jax(policy, folder)
        arrays = _name_as_jax(policy.config, arrays)
    else:
        _write_lerobot(policy, folder)
    np.savez(folder / "io.npz", **arrays)


def make_inputs(config) -> dict[str, np.ndarray]:
    """Random inputs in LeRobot's names: `small` [v, b, 4, 4, 3], `masks` [v, b], text and vectors."""
    rng = np.random.default_rng(5)
    rows, cameras = len(LENGTHS), len(config.cameras)
    chunk = (rows, config.action_horizon, config.max_action_dim)
    masks = np.ones((cameras, rows), bool)
    if cameras > 1:
        masks[-1, 1] = masks[0, 2] = False
    token_mask = np.arange(NUM_TOKENS) < np.array(LENGTHS)[:, None]
    return {
        "small": rng.integers(0, 256, (cameras, rows, 4, 4, 3), dtype=np.uint8),
        "masks": masks,
        "tokens": rng.integers(3, config.vocab_size, token_mask.shape) * token_mask,
        "token_mask": token_mask,
        "state": rng.standard_normal((rows, config.max_state_dim), np.float32),
        "actions": rng.standard_normal(chunk, np.float32),
        "noise": rng.standard_normal(chunk, np.float32),
        "t_openpi": np.array([0.9, 0.25, 0.6, 0.05], np.float32),
    }


def make_batch(config, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The same inputs as tensors, the images enlarged by repeating pixels."""
    io = {name: torch.from_numpy(array) for name, array in arrays.items()}
    times = config.image_size // io["small"].shape[2]
    large = io["small"].repeat_interleave(times, 2).repeat_interleave(times, 3)
    return {
        "pixel_values": large.permute(1, 0, 4, 2, 3).float() / 127.5 - 1,
        "pixel_mask": io["masks"].T,
        "input_ids": io["tokens"].long(),
        "attention_mask": io["token_mask"].long(),
        **{name: io[name] for name in ("state", "actions", "noise", "t_openpi")},
    }


def exact_time(t: torch.Tensor, width: int) -> torch.Tensor:
    """The time embedding in float64 throughout, as LeRobot has it."""
    fraction = torch.arange(width // 2, dtype=torch.float64) / (width // 2 - 1)
    phase = t.double()[:, None] * 2 * math.pi / (0.004 * (4.0 / 0.004) ** fraction)
    return torch.cat([phase.sin(), phase.cos()], -1).float()


def joint_truth(policy, embed_time: Callable[..., torch.Tensor]) -> Callable[..., dict[str, np.ndarray]]:
    """The slow joint attention, with Euler's rule written out in t, which runs from 1 down."""

    def velocity(batch, x, t):
        tau = 1 - t.double()
        ours, hidden = joint_forward(policy.model, batch, x, tau, False, embed_time, with_images=True)
        return -ours, hidden

    def truth(batch, is_jax):
        noise, actions, t = batch["noise"], batch["actions"], batch["t_openpi"]
        t_b11 = t[:, None, None]
        v, hidden = velocity(batch, t_b11 * noise + (1 - t_b11) * actions, t)
        found = {"v_openpi": v, "prefix_out": hidden} if is_jax else {"loss": (noise - actions - v).square()}
        for steps in STEPS:
            x, t_of_step, dt = noise, np.float32(1), np.float32(-1 / steps)
            for step in range(steps):
                if not is_jax:
                    t_of_step = np.float32(1 - step / steps)
                x = x + float(dt) * velocity(batch, x, torch.full(t.shape, float(t_of_step)))[0]
                t_of_step = np.float32(t_of_step + dt)
            found[f"sample_{steps}"] = x
        return {name: tensor.numpy() for name, tensor in found.items()}

    return truth


def transformers_truth(config, theirs) -> Callable[..., dict[str, np.ndarray]]:
    """transformers' own PI0."""

    def truth(batch, is_jax):
        noise, actions = batch["noise"], batch["actions"]
        observed = {"state": batch["state"], **to_their_prefix(config, batch)}
        v = theirs(noise=noise, timestep=batch["t_openpi"], actions=actions, **observed).logits
        found = {"loss": (noise - actions - v).square()}
        for steps in STEPS:
            found[f"sample_{steps}"] = theirs.sample_actions(noise=noise.clone(), num_steps=steps, **observed)
        return {name: tensor.numpy() for name, tensor in found.items()}

    return truth


def _name_as_jax(config, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    small, masks = arrays.pop("small"), arrays.pop("masks")
    for index, camera in enumerate(config.cameras):
        arrays |= {f"small_{camera}": small[index], f"mask_{camera}": masks[index]}
    return arrays


def _write_jax(policy, folder: Path) -> None:
    write_tree(
        folder / "params",
        {name: tensor.numpy() for name, tensor in as_jax(policy.state_dict(), policy.config).items()},
    )


def _write_lerobot(policy, folder: Path) -> None:
    config, size = policy.config, policy.config.image_size
    tensors = renamed(policy.state_dict(), "lerobot, fine-tuned")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    images = {
        f"observation.images.{camera}": {"type": "VISUAL", "shape": [3, size, size]}
        for camera in config.cameras
    }
    described = {
        "type": config.model_type.removeprefix("vla_"),
        "input_features": {**images, "observation.state": {"type": "STATE", "shape": [config.max_state_dim]}},
        "output_features": {"action": {"type": "ACTION", "shape": [config.max_action_dim]}},
        "chunk_size": config.action_horizon,
        "n_action_steps": config.action_horizon,
        "max_state_dim": config.max_state_dim,
        "max_action_dim": config.max_action_dim,
        "min_period": config.min_period,
        "max_period": config.max_period,
        "image_resolution": [size, size],
        "empty_cameras": 0,
        "tokenizer_max_length": NUM_TOKENS,
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    }
    (folder / "config.json").write_text(json.dumps(described))
