"""The policy to measure, and random input for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.initialization import no_init_weights

from vla.bench.options import DTYPES, BenchOptions
from vla.errors import ConfigError
from vla.policies.auto import AutoPolicy
from vla.policies.registry import make_config, policy_entry, policy_names
from vla.types import Batch

_BLOCK = 1_000_003


def make_subject(options: BenchOptions) -> nn.Module:
    """Build or load the policy, in evaluation mode.

    Random weights are made in place and in the wanted dtype, so that no second copy ever exists.

    Raises:
        ConfigError: No such policy, preset or config field; or a preset for stored weights.
        WeightsError: The folder holds no policy.
    """
    name, dtype, device = options.policy, DTYPES[options.dtype], options.torch_device
    if name not in policy_names() and "/" in name:
        if options.preset is not None or options.overrides:
            raise ConfigError(f"{name} is a checkpoint with its own config, so it takes no preset.")
        policy: nn.Module = AutoPolicy.from_pretrained(name, dtype=dtype, device=device)
    else:
        preset = None if options.preset == "full" else options.preset
        config = make_config(name, options.overrides, preset)
        with no_init_weights(), default_dtype(dtype), device:
            policy = policy_entry(name).policy(config)
        fill(policy)
    options.check_against(policy.config)
    return policy.eval()


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
        if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            module.weight.add_(1.0)


def make_observation(options: BenchOptions, config: Any, cameras: int | None = None) -> Batch:
    """Return random input of `sample_actions`.

    Args:
        options: Batch size, prompt length and cameras.
        config: Of the policy whose input it is.
        cameras: How many cameras are there; None takes the options'.
    """
    device, batch = options.torch_device, options.batch
    generator = torch.Generator().manual_seed(1)
    slots, size = len(config.cameras), config.image_size
    present = cameras or options.cameras_present or slots
    length = options.prompt_tokens or config.max_prompt_length
    observation = {
        "pixel_values": torch.rand(batch, slots, 3, size, size, generator=generator) * 2 - 1,
        "pixel_mask": (torch.arange(slots) < present).expand(batch, -1).clone(),
        "input_ids": torch.randint(4, config.vocab_size, (batch, length), generator=generator),
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
        "state": torch.randn(batch, config.max_state_dim, generator=generator),
    }
    return {name: tensor.to(device) for name, tensor in observation.items()}


def make_chunk(options: BenchOptions, config: Any, seed: int) -> torch.Tensor:
    """Return a random chunk `[b, a, m]`, for noise or for actions."""
    shape = (options.batch, config.action_horizon, config.max_action_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(options.torch_device)
