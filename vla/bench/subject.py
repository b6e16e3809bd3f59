"""The policy to measure, and random input for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.initialization import no_init_weights

from vla.bench.options import DTYPES, BenchOptions
from vla.errors import ConfigError
from vla.paths import expanded
from vla.policies.auto import AutoPolicy
from vla.policies.base import Policy
from vla.policies.registry import make_config, policy_entry, policy_names
from vla.types import Batch
from vla.weights.known import known_checkpoints

_BLOCK = 1_000_003


def make_subject(options: BenchOptions) -> Policy:
    """Build or load the policy, in evaluation mode.

    Random weights are made in place and in the wanted dtype, so that no second copy ever exists.

    Raises:
        ConfigError: No such policy, preset or config field; or a preset for stored weights.
        WeightsError: The folder holds no policy.
    """
    name, dtype, device = options.policy, DTYPES[options.dtype], options.torch_device
    if name not in policy_names() and _names_checkpoint(name):
        if options.preset is not None or options.overrides:
            raise ConfigError(f"{name} is a checkpoint with its own config, so it takes no preset.")
        policy = AutoPolicy.from_pretrained(name, dtype=dtype, device=device, base=options.base)
    else:
        if options.base is not None:
            raise ConfigError(f"base is about adapters, and {name} is not a checkpoint.")
        config = config_of(options)
        with no_init_weights(), default_dtype(dtype), device:
            policy = policy_entry(name).policy(config)
        fill(policy)
    options.check_against(policy)
    return policy.eval()


def config_of(options: BenchOptions) -> Any:
    """Return the config of the policy that the options name; None for a checkpoint's, which lies there."""
    if options.policy not in policy_names() and _names_checkpoint(options.policy):
        return None
    preset = None if options.preset == "full" else options.preset
    return make_config(options.policy, options.overrides, preset)


def _names_checkpoint(name: str) -> bool:
    return "/" in name or name in known_checkpoints() or expanded(name).is_dir()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create new tensors in `dtype` inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Give every parameter uniform values that keep activations near unit size, in place.

    Zeros or denormal numbers would be faster than what a trained policy computes with. One block of values
    is laid out again and again, since drawing billions takes a minute; its odd length keeps rows apart.
    """
    block = torch.rand(_BLOCK, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            block = block.to(parameter.device)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 2500
            for part in parameter.view(-1).split(_BLOCK):
                torch.mul(block[: part.numel()], (3 / fan_in) ** 0.5, out=part)
        if isinstance(module, nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
            module.weight.add_(1.0)


def make_observation(options: BenchOptions, policy: Policy, cameras: int | None = None) -> Batch:
    """Return random input of `sample_actions`.

    Args:
        options: Batch size, prompt length and cameras.
        policy: The policy whose input it is.
        cameras: How many cameras are there; None takes the options'.
    """
    present = cameras or options.cameras_present
    return policy.example_batch(options.batch, cameras=present, text_tokens=options.prompt_tokens, seed=1)


def make_training_batch(options: BenchOptions, policy: Policy) -> Batch:
    """Return the same input with a random chunk of actions `[b, a, m]`."""
    return policy.example_batch(
        options.batch,
        cameras=options.cameras_present,
        text_tokens=options.prompt_tokens,
        training=True,
        seed=1,
    )


def make_noise(options: BenchOptions, policy: Policy) -> torch.Tensor:
    """Return random noise of a chunk's shape, `[b, a, m]`."""
    shape = policy.example_batch(options.batch, training=True)["actions"].shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(policy.device)
