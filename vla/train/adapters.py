"""Which parameters a recipe trains: all of them, some parts, or an adapter in their place."""

from typing import Any

import torch

from vla.errors import ConfigError
from vla.policies.adapters import AdapterConfig, add_adapter
from vla.policies.base import Policy
from vla.train.recipe import Recipe
from vla.train.seeds import INITIALISATION, derive_seed


def choose_trained(policy: Policy, recipe: Recipe, *, is_resumed: bool) -> None:
    """Put the recipe's adapter into the policy, and let only what it trains require a gradient.

    Args:
        policy: As it was loaded, from a checkpoint of the run where it is resumed; changed in place.
        recipe: Its `policy.adapter` and `policy.freeze`.
        is_resumed: Whether the policy brings the run's adapter already.

    Raises:
        ConfigError: What it starts from is an adapter itself, the policy has no parts of that name, or the
            targets match nothing.
        MissingDependencyError: The adapter needs `peft`, which is not installed.
    """
    wanted = recipe.policy
    if policy.adapter is not None and not is_resumed:
        raise ConfigError(
            f"policy.pretrained={wanted.pretrained} is an adapter, and training starts from a whole "
            f"checkpoint: write one with `vla merge {wanted.pretrained} DST`."
        )
    if wanted.adapter is not None and policy.adapter is None:
        torch.manual_seed(derive_seed(recipe.train.seed, INITIALISATION))
        add_adapter(policy, AdapterConfig(**wanted.adapter.model_dump()))
    if wanted.freeze != "none":
        if not hasattr(policy, "frozen_parts"):
            raise ConfigError(f"{type(policy).__name__} has no parts to freeze: leave policy.freeze out.")
        parts: Any = policy
        frozen = parts.frozen_parts(wanted.freeze)
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
