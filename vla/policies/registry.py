"""Policies by name, found by folder: `vla/policies/<name>/` is all it takes to add one."""

import importlib
import importlib.util
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

import vla.policies
from vla.errors import ConfigError, WeightsError, did_you_mean
from vla.policies.base import Policy
from vla.policies.robot import RobotPolicy
from vla.transforms.base import Pipeline
from vla.weights.source import local_folder


class PolicyEntry(NamedTuple):
    """What a policy's folder exports."""

    config: type[PretrainedConfig]
    policy: type[Policy]
    make_pipeline: Callable[..., Pipeline]


def policy_names() -> list[str]:
    """Return the names of all policies, that is of the folders beside this file."""
    return sorted(module.name for module in pkgutil.iter_modules(vla.policies.__path__) if module.ispkg)


def policy_entry(name: str) -> PolicyEntry:
    """Import a policy's folder and return what it exports.

    Raises:
        ConfigError: There is no such policy; the nearest name is given.
    """
    names = policy_names()
    if name not in names:
        raise ConfigError(f"There is no policy '{name}', only {', '.join(names)}.{did_you_mean(name, names)}")
    folder = importlib.import_module(f"vla.policies.{name}")
    return PolicyEntry(*(getattr(folder, export) for export in ("CONFIG", "POLICY", "make_pipeline")))


def make_config(
    name: str, overrides: dict[str, Any] | None = None, preset: str | None = None
) -> PretrainedConfig:
    """Build a policy's config.

    Args:
        name: The policy's name, "pi0".
        overrides: Fields of its config; unknown ones are refused.
        preset: A named size that its config offers ("tiny"); None: full size.

    Raises:
        ConfigError: An unknown policy, preset or field, or a value that a field does not take.
    """
    config_class = policy_entry(name).config
    known = set(config_class().to_dict())
    for key in overrides or {}:
        if key not in known:
            raise ConfigError(
                f"policy.config.{key} is not a field of {config_class.__name__}.{did_you_mean(key, known)}"
            )
    make: Callable[..., PretrainedConfig] = config_class
    if preset is not None:
        presets = getattr(config_class, "PRESETS", ())
        if preset not in presets:
            raise ConfigError(f"{config_class.__name__} has no preset '{preset}', only {', '.join(presets)}.")
        make = getattr(config_class, preset)
    try:
        return make(**(overrides or {}))
    except StrictDataclassError as error:
        detail = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"{config_class.__name__}: {detail}") from error


def make_policy(name: str, overrides: dict[str, Any] | None = None, preset: str | None = None) -> Policy:
    """Build a freshly initialised policy; see `make_config` for the arguments."""
    return policy_entry(name).policy(make_config(name, overrides, preset))


def reference_of(policy: Policy, library: str) -> Any:
    """Return another library's implementation with the policy's weights, to compare with.

    It has `model`, `sample_actions(observation, noise)` and `loss(batch)`, on our tensors.

    Args:
        policy: Its folder may hold a `reference.py` with one class per library.
        library: "transformers".

    Raises:
        ConfigError: The policy's folder has no such implementation.
    """
    folder = type(policy).__module__.rpartition(".")[0]
    found = importlib.util.find_spec(f"{folder}.reference")
    reference = importlib.import_module(f"{folder}.reference") if found else None
    make = getattr(reference, f"{library.capitalize()}Reference", None)
    if make is None:
        raise ConfigError(f"{type(policy).__name__} has no implementation in {library} to compare with.")
    return make(policy)


class AutoPolicy:
    """Opens any policy folder or hub repository as the class that its config names."""

    @staticmethod
    def from_pretrained(
        name_or_path: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> Policy:
        """Load a policy in evaluation mode.

        Args:
            name_or_path: Folder or hub id.
            dtype: What to convert the weights to; as stored where not given.
            device: Where to put them.
            revision: Branch, tag or commit on the hub.
            token: Hub token, for private repositories.
            cache_dir: Where hub snapshots are kept.

        Raises:
            WeightsError: Not a policy of this project, or not exactly its weights.
        """
        folder = local_folder(name_or_path, revision, token, cache_dir)
        policy = policy_entry(_policy_of(folder)).policy.from_pretrained(folder, dtype=dtype or "auto")
        return policy.to(device) if device is not None else policy  # type: ignore[arg-type]


def load(
    name_or_path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
) -> RobotPolicy:
    """Load weights and pipeline: robot units in, robot units out. Arguments as in `AutoPolicy`.

    Raises:
        WeightsError: As `AutoPolicy.from_pretrained`.
        StatisticsError: The checkpoint has no pipeline, so its actions could not be denormalised.
    """
    return RobotPolicy(
        AutoPolicy.from_pretrained(name_or_path, dtype=dtype, device=device, revision=revision)
    )


def _policy_of(folder: Path) -> str:
    path = folder / "config.json"
    if not path.exists():
        raise WeightsError(f"{folder} holds no config.json, so it is no checkpoint of a policy.")
    try:
        model_type = json.loads(path.read_text()).get("model_type")
    except (json.JSONDecodeError, AttributeError) as error:
        raise WeightsError(f"{path} is not a config: {error}.") from error
    by_type = {policy_entry(name).config.model_type: name for name in policy_names()}
    if model_type not in by_type:
        raise WeightsError(
            f"{path} says model_type '{model_type}'; this version opens {', '.join(sorted(by_type))}."
        )
    return by_type[model_type]
