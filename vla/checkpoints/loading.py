"""Load a policy from a checkpoint of any format: recognise, check, build empty, stream.

Only headers are read until the whole plan is known to be right, and a policy is returned complete or not at
all.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from vla.checkpoints.empty import empty_policy, parameter_shapes, reserve_memory
from vla.checkpoints.keywords import config_fields
from vla.checkpoints.module import LoadedFrom, PolicyModule
from vla.checkpoints.pipelines import read_pipeline, read_tokenizer
from vla.checkpoints.recognise import recognise, weights_module
from vla.errors import WeightsError
from vla.policies.registry import policy_entry
from vla.transforms.named_pipelines import pipeline_names, read_pipelines
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
        StatisticsError: Its statistics are damaged, or several and none was chosen.
        ConfigError: A field of `config` does not exist or contradicts the weights.
    """
    with ExitStack() as stack:
        stored = stack.enter_context(open_stored(folder))
        name, fmt = recognise(stored)
        policy_class = policy_entry(name).policy
        if expected is not None and policy_class is not expected:
            raise WeightsError(
                f"{folder} holds a {policy_class.__name__}, not a {expected.__name__}: open it with "
                f"{policy_class.__name__}.from_pretrained or vla.AutoPolicy.from_pretrained."
            )
        read_config = weights_module(name).read_config
        if not (config is None or isinstance(config, Mapping)):
            config = config_fields(config, read_config(stored, fmt))
        settings = read_config(stored, fmt, dict(config or {}))
        policy = _with_weights(policy_class, settings, stored, fmt, dtype, device, load_weights)
        if fmt.name == "vla" and pipeline_names(folder):
            policy.pipelines = read_pipelines(folder)
            policy.tokenizer = next(iter(policy.pipelines.values())).tokenizer
        else:
            policy.pipeline = read_pipeline(
                folder,
                fmt.name,
                name,
                settings,
                stored_config=stored.config,
                tokenizer=tokenizer,
                asset_id=asset_id,
            )
        if not policy.pipelines:
            policy.tokenizer = read_tokenizer(
                folder, fmt.name, stored_config=stored.config, tokenizer=tokenizer
            )
    policy.loaded_from = LoadedFrom.of_folder(folder, config, asset_id)
    # By this, peft says in its files what they belong to. (In the config, it would make two copies differ.)
    policy.name_or_path = policy.loaded_from.name
    return policy.eval()


def _with_weights(
    policy_class: type[PolicyModule],
    settings: Any,
    stored: Stored,
    fmt: Format,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    load_weights: bool,
) -> PolicyModule:
    policy = empty_policy(policy_class, settings)
    plan = plan_load(fmt, stored, parameter_shapes(policy))
    wanted = as_dtype(dtype) or main_dtype(plan.pieces)
    if load_weights:
        fill_module(policy, plan.pieces, stored.reader, dtype=wanted, device=device)
    else:
        reserve_memory(policy, wanted)
    policy.config.dtype = wanted
    return policy if device is None else policy.to(device)  # type: ignore[arg-type]
