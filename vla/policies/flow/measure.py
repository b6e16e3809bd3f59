"""What pi-0's family is measured with: random input, and the parts of sampling."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vla.types import Batch

OBSERVATION = ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "state")
"""Tensors that sampling reads."""


def example_batch(
    policy: Any,
    batch_size: int,
    *,
    cameras: int | None = None,
    text_tokens: int | None = None,
    training: bool = False,
    response_tokens: int = 0,
    seed: int = 1,
) -> Batch:
    """Return a random observation without padding, and actions where it is to be trained on.

    Images do not depend on how many cameras are there, nor the rest on whether there are actions.

    Args:
        policy: The policy whose shapes and device they have.
        batch_size: Number of observations.
        cameras: How many of its cameras are there, the first ones; None: all.
        text_tokens: Length of the text; None: the longest that the config allows.
        training: Whether to add `actions`.
        response_tokens: How many of the text's tokens, the last ones, are a response, to be learned where it
            is to be trained on.
        seed: Seed of the values.
    """
    config, generator = policy.config, torch.Generator().manual_seed(seed)
    slots, size = len(config.cameras), config.image_size
    present = slots if cameras is None else cameras
    length = config.max_prompt_length if text_tokens is None else text_tokens
    batch = {
        "pixel_values": torch.rand(batch_size, slots, 3, size, size, generator=generator) * 2 - 1,
        "pixel_mask": (torch.arange(slots) < present).expand(batch_size, -1).clone(),
        "input_ids": torch.randint(4, config.vocab_size, (batch_size, length), generator=generator),
        "attention_mask": torch.ones(batch_size, length, dtype=torch.long),
        "state": torch.randn(batch_size, config.max_state_dim, generator=generator),
    }
    if response_tokens:
        is_response = (torch.arange(length) >= length - response_tokens).expand(batch_size, -1)
        batch["token_type_ids"] = is_response.long()
        if training:
            batch["labels"] = torch.where(is_response, batch["input_ids"], -100)
    if training:
        shape = (batch_size, config.action_horizon, config.max_action_dim)
        batch["actions"] = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 2))
    return {name: tensor.to(policy.device) for name, tensor in batch.items()}


@torch.no_grad()
def timed_parts(policy: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """Return the prefix, and one velocity step behind it: what a sample is made of."""
    observation = {name: batch[name] for name in OBSERVATION}
    cache, config = policy.encode_prefix(**observation), policy.config
    shape = (len(batch["state"]), config.action_horizon, config.max_action_dim)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(policy.device)
    tau = torch.full(shape[:1], 0.5, device=policy.device)
    return {
        "prefix": torch.no_grad()(lambda: policy.encode_prefix(**observation)),
        "velocity step": torch.no_grad()(lambda: policy.velocity(x, tau, cache)),
    }
