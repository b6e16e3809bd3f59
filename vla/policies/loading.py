"""One way to load a policy, whatever format its checkpoint has: recognise, check, build empty, stream.

Nothing is read but headers until the whole plan has been found right, and a policy is handed out whole or
not at all.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from vla.errors import ConfigError, WeightsError
from vla.policies.base import Policy
from vla.policies.empty import empty_policy, parameter_shapes, reserve_memory
from vla.policies.pipelines import read_pipeline, read_tokenizer
from vla.policies.published import recognise, weights_module
from vla.policies.registry import policy_entry
from vla.transforms.named_pipelines import read_pipelines
from vla.transforms.prompt import TokenizePrompt
from vla.weights.dtypes import as_dtype, main_dtype
from vla.weights.formats import BASE_FILE, Format, Stored, open_stored, plan_load
from vla.weights.stream import fill_module


def load_policy(
    folder: Path,
    expected: type[Policy] | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    config: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    asset_id: str | None = None,
    quantize: str | None = None,
    hub: Mapping[str, Any] | None = None,
    fill: bool = True,
) -> Policy:
    """Return the policy of a checkpoint folder, in evaluation mode.

    Args:
        folder: Of any format that is known.
        expected: The class that the checkpoint must hold; None takes what it holds.
        dtype: Of the weights; None keeps that of most of the stored ones.
        device: Where to put them.
        config: Fields of the config to change; not those that the tensors decide.
        tokenizer: A tokenizer, or its folder or hub id, where the checkpoint brings none.
        asset_id: Which statistics to take where the checkpoint holds those of several robots.
        quantize: "4bit" or "8bit" stores the layers' linear maps so, and freezes the policy; see
            `vla.policies.quantize`.
        hub: How to reach an adapter's base: `token`, `cache_dir`, `local_files_only`.
        fill: False leaves the weights without values; not of an adapter.

    Raises:
        WeightsError: Not a policy, not the expected one, or not exactly its weights.
        StatisticsError: Its statistics are damaged, or several and none was chosen.
        ConfigError: A field of `config` does not exist or contradicts the weights; `quantize` does not fit.
        MissingDependencyError: `quantize` needs bitsandbytes, which is not installed.
    """
    if (folder / BASE_FILE).is_file():
        if config or asset_id is not None:
            raise ConfigError(f"{folder} holds an adapter: config and statistics are those of its training.")
        from vla.policies.adapter_files import load_with_base

        return load_with_base(
            folder,
            expected,
            dtype=dtype,
            device=device,
            tokenizer=tokenizer,
            quantize=quantize,
            **(hub or {}),
        ).eval()
    with ExitStack() as stack:
        stored = stack.enter_context(open_stored(folder))
        name, fmt = recognise(stored)
        policy_class = policy_entry(name).policy
        if expected is not None and policy_class is not expected:
            raise WeightsError(
                f"{folder} holds a {policy_class.__name__}, not a {expected.__name__}: open it with "
                f"{policy_class.__name__}.from_pretrained or vla.AutoPolicy.from_pretrained."
            )
        settings = weights_module(name).read_config(stored, fmt, dict(config or {}))
        if quantize is None:
            policy = _fill(policy_class, settings, stored, fmt, dtype, device, fill)
        else:
            policy = _fill_quantized(policy_class, settings, stored, fmt, dtype, device, quantize)
        policy.pipeline = read_pipeline(
            folder,
            fmt.name,
            name,
            settings,
            stored_config=stored.config,
            tokenizer=tokenizer,
            asset_id=asset_id,
        )
        if fmt.name == "vla":
            policy.pipelines = read_pipelines(folder)
        if policy.pipelines:
            policy.tokenizer = next(iter(policy.pipelines.values())).find(TokenizePrompt).tokenizer
        elif policy.pipeline is None:
            policy.tokenizer = read_tokenizer(
                folder, fmt.name, stored_config=stored.config, tokenizer=tokenizer
            )
    return policy.eval()


def _fill(
    policy_class: type[Policy],
    settings: Any,
    stored: Stored,
    fmt: Format,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    fill: bool,
) -> Policy:
    policy = empty_policy(policy_class, settings)
    plan = plan_load(fmt, stored, parameter_shapes(policy))
    wanted = as_dtype(dtype) or main_dtype(plan.pieces)
    if fill:
        fill_module(policy, plan.pieces, stored.reader, dtype=wanted, device=device)
    else:
        reserve_memory(policy, wanted)
    policy.config.dtype = wanted
    return policy if device is None else policy.to(device)  # type: ignore[arg-type]


def _fill_quantized(
    policy_class: type[Policy],
    settings: Any,
    stored: Stored,
    fmt: Format,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    kind: str,
) -> Policy:
    """Fill in the processor's memory, so that a device holds the few bits alone, and one map at a time."""
    from vla.policies.quantize import check_kind, quantize_base

    checked = check_kind(kind)  # before gigabytes are read
    policy = _fill(policy_class, settings, stored, fmt, dtype, None, fill=True)
    quantize_base(policy, checked, device)
    return policy
