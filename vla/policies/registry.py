"""Policies by name, found by folder: `vla/policies/<name>/` is all it takes to add one."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

import vla.policies
from vla.errors import ConfigError, did_you_mean
from vla.policies.base import Policy
from vla.policies.robot import RobotPolicy, choose_pipeline
from vla.transforms.base import Pipeline
from vla.transforms.named_pipelines import check_choice, pipeline_names
from vla.transforms.robots import apply_robot, load_robot
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


_WHERE = ("revision", "token", "cache_dir", "local_files_only")


class AutoPolicy:
    """Opens any known checkpoint as the policy that its content says it is."""

    from_pretrained = staticmethod(Policy.from_pretrained)
    """See `vla.policies.base.Policy.from_pretrained`."""


def load(
    name_or_path: str | Path,
    *,
    robot: str | Path | None = None,
    pipeline: str | None = None,
    **options: Any,
) -> RobotPolicy:
    """Load weights and pipeline: robot units in, robot units out.

    Args:
        name_or_path: Folder, hub id, or short name from `vla info known`.
        robot: Description of the robot (`recipes/robots/<robot>.yaml`), for checkpoints that record neither
            cameras nor conventions, such as openpi's. It also chooses among the statistics of several robots.
        pipeline: Which robot of a checkpoint that was trained on a mixture: the name of its pipeline.
        **options: As of `AutoPolicy.from_pretrained`: `dtype`, `device`, `revision`, ...

    Raises:
        WeightsError: As `AutoPolicy.from_pretrained`.
        StatisticsError: The checkpoint has no statistics, so its actions could not be denormalised.
        ConfigError: The robot's description does not fit, or `pipeline` names none of the checkpoint's.
    """
    described = None if robot is None else load_robot(robot)
    folder = local_folder(name_or_path, **{key: options[key] for key in _WHERE if key in options})
    options.pop("revision", None)  # of the folder, not of an adapter's base, which the rest may help to reach
    check_choice(pipeline_names(folder), pipeline)  # before minutes are spent on loading
    if (
        described is not None
        and described.asset_id is not None
        and (folder / "assets" / described.asset_id).is_dir()
    ):
        options.setdefault("asset_id", described.asset_id)
    policy = choose_pipeline(AutoPolicy.from_pretrained(folder, **options), pipeline)
    if described is not None and policy.pipeline is not None:
        policy.pipeline = apply_robot(policy.pipeline, described)
    return RobotPolicy(policy)
