"""Load a policy from a checkpoint of any format: recognise, check, build empty, stream.

Only headers are read until the whole plan is known to be right, and a policy is returned complete or not at
all.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from vla.checkpoints.agreement import check_pipelines
from vla.checkpoints.empty import empty_policy, parameter_shapes, reserve_memory
from vla.checkpoints.keywords import config_fields
from vla.checkpoints.module import LoadedFrom, PolicyModule
from vla.checkpoints.pipelines import check_asset, read_pipeline, read_tokenizer
from vla.checkpoints.recognise import recognise, weights_module
from vla.errors import ConfigError, StatisticsError, WeightsError, misread, remedied
from vla.policies.registry import policy_entry
from vla.transforms.base import Pipeline
from vla.transforms.named_pipelines import pipeline_names, read_pipelines
from vla.transforms.tokenizer import check_given
from vla.weights.dtypes import as_dtype, main_dtype
from vla.weights.formats import Format, Stored, open_stored
from vla.weights.plan import plan_load
from vla.weights.stream import fill_module


def load_policy(
    folder: Path,
    expected: type[PolicyModule] | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    config: Mapping[str, Any] | str | Path | Any = None,
    tokenizer: Any = None,
    asset_id: str | None = None,
    load_weights: bool = True,
) -> PolicyModule:
    """Return the policy of a checkpoint folder, in evaluation mode.

    Args:
        folder: A checkpoint in any format that is known.
        expected: The class that the checkpoint must hold; None takes what it holds.
        dtype: Dtype of the weights; None keeps that of most of the stored ones.
        device: Where to put them.
        config: Fields of the config to change; not those that the tensors decide. Or a whole config of the
            policy, or its folder: then the fields that differ.
        tokenizer: A tokenizer, or its folder or hub id, where the checkpoint has none.
        asset_id: Which statistics to take where the checkpoint holds those of several robots.
        load_weights: False checks all of them, but leaves the policy's without values.

    Raises:
        WeightsError: Not a policy, an adapter, not the expected policy, or not exactly its weights.
        StatisticsError: Its statistics are damaged, of another width than the rest, or several and none was
            chosen.
        ConfigError: The tokenizer's path holds none, a field of `config` does not exist or contradicts the
            weights, or the pipeline makes something else than the policy reads.
    """
    asked = as_dtype(dtype)
    check_given(tokenizer)
    with ExitStack() as stack:
        with remedied(folder):
            stored = stack.enter_context(open_stored(folder))
            name, fmt = recognise(stored)
        policy_class = policy_entry(name).policy
        if expected is not None and policy_class is not expected:
            raise WeightsError(
                f"{folder} holds a {policy_class.__name__}, not a {expected.__name__}: in a recipe, give "
                f"policy.type={name}; in Python, open it with {policy_class.__name__}.from_pretrained or "
                "vla.AutoPolicy.from_pretrained."
            )
        if not (config is None or isinstance(config, Mapping)):
            with misread(folder / "config.json", ConfigError):
                config = config_fields(config, weights_module(name).read_config(stored, fmt))
        overrides = dict(config or {})
        if not (overrides or asset_id or tokenizer):  # what a user asks for does no damage
            stack.enter_context(remedied(folder))
        policy = _without_weights(policy_class, name, stored, fmt, overrides)
        plan = plan_load(fmt, stored, parameter_shapes(policy))
        policy.pipelines, policy.tokenizer = _pipelines(policy.config, name, stored, fmt, tokenizer, asset_id)
        if not overrides:  # with other fields it is to be trained, by a pipeline of its own
            check_pipelines(policy, policy.pipelines, folder)
        policy.config.dtype = wanted = asked or main_dtype(plan.pieces)
        if load_weights:
            fill_module(policy, plan.pieces, stored.reader, dtype=wanted, device=device)
        else:
            reserve_memory(policy, wanted)
    policy.loaded_from = LoadedFrom.of_folder(folder, config, asset_id)
    # By this, peft says in its files what they belong to. (In the config, it would make two copies differ.)
    policy.name_or_path = policy.loaded_from.name
    return (policy if device is None else policy.to(device)).eval()  # type: ignore[arg-type]


def _without_weights(
    policy_class: type[PolicyModule], name: str, stored: Stored, fmt: Format, overrides: dict[str, Any]
) -> PolicyModule:
    """Return the policy that a checkpoint's config and tensors describe, without memory for weights."""
    with misread(stored.folder / "config.json", ConfigError):
        settings = weights_module(name).read_config(stored, fmt, overrides)
        try:
            return empty_policy(policy_class, settings)
        except (RuntimeError, AssertionError) as error:  # sizes of which no module can be made
            raise ConfigError(
                f"{stored.folder / 'config.json'} describes a {policy_class.__name__} that cannot be built: "
                f"{' '.join(str(error).split())}."
            ) from error


def _pipelines(
    settings: Any, name: str, stored: Stored, fmt: Format, tokenizer: Any, asset_id: str | None
) -> tuple[dict[str | None, Pipeline], Any]:
    """Return a checkpoint's pipelines, and the tokenizer for fine-tuning where it has no single one."""
    folder = stored.folder
    if fmt.name == "vla" and pipeline_names(folder):
        check_asset(folder, fmt.name, asset_id)
        pipelines = read_pipelines(folder)
        return pipelines, next(iter(pipelines.values())).tokenizer
    options = {"stored_config": stored.config, "tokenizer": tokenizer}
    try:
        with misread(f"{folder}: its config.json, or a file of its pipeline,", ConfigError):
            found = read_pipeline(folder, fmt.name, name, settings, asset_id=asset_id, **options)
            if found is not None:
                return {None: found}, None
            return {}, read_tokenizer(folder, fmt.name, **options)
    except (ConfigError, StatisticsError, WeightsError) as error:
        if str(folder) in str(error):
            raise
        raise type(error)(f"{folder}: {error}") from error
