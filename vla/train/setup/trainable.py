"""Which parameters a recipe trains: all of them, some parts, or an adapter in their place."""

from pathlib import Path
from typing import Any

import torch

from vla.adapters.files import load_with_base
from vla.adapters.lora import AdapterConfig, add_adapter, cast_frozen, cast_trained
from vla.errors import ConfigError
from vla.policies.base import Policy
from vla.policies.registry import policy_entry
from vla.train.recipe import AdapterSection, Recipe
from vla.train.seeds import INITIALISATION, derive_seed


def start_quantized(recipe: Recipe, checkpoint: Path | None, base: str | None = None) -> Policy:
    """Return the policy whose adapter is trained, its base in 4 or 8 bits, where the training will run.

    What else is frozen has the dtype that is computed in. Nothing of it is written to a checkpoint, so that a
    resumed run makes the same base again.

    Args:
        recipe: With `policy.adapter.quantize`.
        checkpoint: The run's checkpoint, where it is resumed: the policy then has its adapter, in float32.
        base: Where the base lies, if it moved since then.

    Raises:
        ConfigError: None of the base's maps can be stored so.
        MissingDependencyError: It needs bitsandbytes, which is not installed.
        WeightsError: The base is missing or damaged, or not the one that the checkpoint was trained on.
    """
    wanted = recipe.policy
    assert wanted.adapter is not None
    assert wanted.pretrained is not None
    expected = policy_entry(wanted.type).policy
    options: dict[str, Any] = {
        "dtype": torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32,
        "device": torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None,
        "quantize": wanted.adapter.quantize,
    }
    if checkpoint is not None:
        policy: Any = load_with_base(checkpoint, expected, base=base, adapter_dtype=torch.float32, **options)
        return policy
    return expected.from_pretrained(wanted.pretrained, config=wanted.config, **options)


def choose_trained(policy: Policy, recipe: Recipe, *, trains_text: bool, is_resumed: bool) -> None:
    """Put the recipe's adapter into the policy, and let only what it trains require a gradient.

    The base of an adapter has the dtype that is computed in: no update of it could round to nothing. What
    no gradient reaches is left out, since engines differ in whether its weights decay.

    Args:
        policy: The loaded policy, from a checkpoint of the run where it is resumed; changed in place.
        recipe: Its `policy.adapter` and `policy.freeze`.
        trains_text: Whether any sample has text to learn.
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
            f"checkpoint: write one with `vla merge {wanted.pretrained} DST`; or continue the adapter's own "
            "run with --resume."
        )
    if wanted.adapter is not None and policy.adapter is None:
        torch.manual_seed(derive_seed(recipe.train.seed, INITIALISATION))
        add_adapter(policy, adapter_config(wanted.adapter))
        cast_trained(policy, torch.float32)  # the base may be bfloat16
    if wanted.adapter is not None and recipe.train.precision == "bf16":
        cast_frozen(policy, torch.bfloat16)
    if wanted.freeze != "none":
        _freeze(policy, policy.parts.frozen_prefixes(wanted.freeze))
    _freeze(policy, policy.prefixes_without_gradient(trains_text))


def adapter_config(section: AdapterSection) -> AdapterConfig:
    """Return how a recipe's adapter is made; raises `ConfigError` where its keys contradict each other."""
    return AdapterConfig(**section.model_dump(exclude={"quantize"}))


def _freeze(policy: Policy, beginnings: tuple[str, ...]) -> None:
    for name, parameter in policy.named_parameters():
        if name.startswith(beginnings):
            parameter.requires_grad_(False)
