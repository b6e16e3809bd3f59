"""Check a recipe's choices against its policy's class, and fill in the defaults that the policy brings.

The policy's class is enough for that, so it happens before weights, data or devices are touched.
"""

from collections.abc import Mapping
from typing import Any

from vla.errors import ConfigError, did_you_mean
from vla.policies.base import CAPABILITIES, Policy
from vla.train.recipe import AdapterSection, Normalization, Recipe, TrainSection
from vla.transforms.normalize import NormalizationMode


def resolve(recipe: Recipe, policy_class: type[Policy]) -> Recipe:
    """Return the recipe with everything written out that the policy's class decides.

    Keys of `train` that neither the file nor the command line gave take the policy's `training_defaults`; an
    adapter without a preset takes the policy's first. Doing it twice changes nothing.

    Args:
        recipe: The recipe as it was read.
        policy_class: Class of the policy that `policy.type` names.

    Raises:
        ConfigError: The recipe chooses something that the policy does not offer; its choices are named.
    """
    chosen = recipe.policy
    _check_preset(chosen.preset, policy_class)
    if chosen.freeze != "none":
        _require("freezing", policy_class, f"policy.freeze={chosen.freeze}")
        policy_class.parts.frozen_prefixes(chosen.freeze)
    if chosen.adapter is not None:
        chosen = chosen.model_copy(update={"adapter": _adapter(chosen.adapter, policy_class)})
    for data in (recipe.data, *(recipe.data.mixture or ())):
        normalization_modes(data.normalization, policy_class)
    if recipe.train.draws_per_observation is not None:
        asked = f"train.draws_per_observation={recipe.train.draws_per_observation}"
        _require("draws", policy_class, asked)
    if recipe.train.activation_checkpointing != "none":
        asked = f"train.activation_checkpointing={recipe.train.activation_checkpointing}"
        _require("activation_checkpointing", policy_class, asked)
    return recipe.model_copy(update={"policy": chosen, "train": _train(recipe.train, policy_class)})


def normalization_modes(
    normalization: Normalization, policy_class: type[Policy]
) -> dict[str, NormalizationMode]:
    """Return how each feature is normalised: what a recipe says, else the policy's own.

    Args:
        normalization: `data.normalization`: one mode for all features, or modes by feature, or None.
        policy_class: Class of the policy.

    Raises:
        ConfigError: The policy has no such feature.
    """
    own = dict(policy_class.normalization)
    given: Mapping[str, NormalizationMode] = {}
    if isinstance(normalization, str):
        given = dict.fromkeys(own, normalization)
    elif normalization is not None:
        given = normalization
    for feature in given:
        if feature not in own:
            raise ConfigError(
                f"data.normalization names '{feature}', but {policy_class.__name__} normalises "
                f"{', '.join(own)}.{did_you_mean(feature, own)}"
            )
    return own | dict(given)


def _check_preset(preset: str | None, policy_class: type[Policy]) -> None:
    config_class: Any = policy_class.config_class
    presets: tuple[str, ...] = config_class.PRESETS
    if preset is not None and preset not in presets:
        raise ConfigError(
            f"policy.preset must be one of {', '.join(presets)} for {policy_class.__name__}, got "
            f"'{preset}'.{did_you_mean(preset, presets)}"
        )


def _adapter(adapter: AdapterSection, policy_class: type[Policy]) -> AdapterSection:
    """Return the adapter with its preset, which the policy offers."""
    _require("adapters", policy_class, "policy.adapter")
    if adapter.quantize is not None:
        _require("quantization", policy_class, f"policy.adapter.quantize={adapter.quantize}")
    preset, presets = adapter.preset, policy_class.parts.adapter_presets
    if preset is None and adapter.targets is None:
        preset = policy_class.parts.default_adapter_preset
    if preset is not None and preset not in presets:
        raise ConfigError(
            f"policy.adapter.preset must be one of {', '.join(presets)} for {policy_class.__name__}, got "
            f"'{preset}'.{did_you_mean(preset, presets)}"
        )
    return adapter.model_copy(update={"preset": preset})


def _train(train: TrainSection, policy_class: type[Policy]) -> TrainSection:
    defaults, given = policy_class.training_defaults, train.model_fields_set
    values = train.model_dump() | {key: value for key, value in defaults.items() if key not in given}
    return TrainSection.model_validate(values)


def _require(capability: str, policy_class: type[Policy], asked: str) -> None:
    """Raise `ConfigError` where a recipe asks for what the policy leaves out."""
    if capability in policy_class.leaves_out:
        raise ConfigError(
            f"{asked}: {policy_class.__name__} does not offer it ({CAPABILITIES[capability]}). Leave it out."
        )
