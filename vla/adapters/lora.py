"""Low-rank adapters (LoRA, arXiv 2106.09685) inside a policy, through `peft`.

The policy keeps its class, for instance `Pi0Policy`: the linear layers that its preset names get two small
matrices each, and the state and action projections get a trained copy. Everything else is frozen. A policy
may hold several adapters; one of them, with its own pipeline, is active.

`vla.adapters.files` saves, loads and merges them.
"""

import hashlib
import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from vla.checkpoints.module import PolicyModule
from vla.errors import ConfigError, MissingDependencyError, did_you_mean
from vla.types import as_targets

logger = logging.getLogger(__name__)

DEFAULT_NAME = "default"
"""Name of an adapter inside a policy where none is given."""

ALL_LINEAR = "all-linear"
"""What `peft` calls every linear layer."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SAMPLES = 64
"""Values of each tensor that enter a fingerprint."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """How a policy is adapted.

    Attributes:
        preset: Which linear layers, by the policy's names ("expert"); None: the policy's default.
        targets: In place of the preset: a regular expression that matches the full names of the linear
            layers; or, as `peft` takes them, how their names end ("q_proj", ["q_proj", "v_proj"]), or
            "all-linear".
        rank: Rank of the update.
        alpha: The update is scaled by `alpha / rank`, or `alpha / sqrt(rank)` with `rslora`.
        dropout: Dropout on the update's input, in training.
        dora: Learn magnitude and direction separately (arXiv 2402.09353).
        rslora: Scale that does not fade with the rank (arXiv 2312.03732).
    """

    preset: str | None = None
    targets: str | Sequence[str] | None = None
    rank: int = 16
    alpha: float = 16
    dropout: float = 0.0
    dora: bool = False
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.targets is not None:
            object.__setattr__(self, "targets", as_targets(self.targets))
        if self.preset is not None and self.targets is not None:
            raise ConfigError(
                f"An adapter's layers are those of its preset or of its targets, got both: "
                f"'{self.preset}' and {self.targets!r}. Leave one out (null)."
            )
        if self.rank < 1:
            raise ConfigError(f"An adapter's rank must be at least 1, got {self.rank}.")
        if self.alpha <= 0:
            raise ConfigError(f"An adapter's alpha must be above 0, got {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"An adapter's dropout must be in [0, 1), got {self.dropout}.")


def import_peft() -> ModuleType:
    """Return `peft`, which is imported only where an adapter is needed.

    Raises:
        MissingDependencyError: It is not installed.
    """
    # It imports bitsandbytes where that is installed, which reports that a faster kernel is absent.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError(
            "Adapters need peft, which belongs to vla's own requirements: pip install 'peft>=0.20'."
        ) from error
    return peft


def add_adapter(policy: PolicyModule, config: AdapterConfig | None = None, name: str = DEFAULT_NAME) -> None:
    """Add a fresh adapter to a policy and make it the active one; the policy's outputs do not change.

    From here on only the adapter and the modules that are trained whole require a gradient. The matrices are
    drawn from torch's global generator.

    Args:
        policy: The policy, changed in place.
        config: What to adapt and how.
        name: Name of the adapter inside the policy.

    Raises:
        ConfigError: A target matches no linear layer (says what there is), or the policy offers no adapter.
        MissingDependencyError: `peft` is not installed.
    """
    config = AdapterConfig() if config is None else config
    if not isinstance(config, AdapterConfig):
        raise ConfigError(
            f"add_adapter takes an AdapterConfig(rank=..., targets=...), got the {type(config).__name__}; a "
            "LoraConfig is for peft.get_peft_model(policy, config)."
        )
    peft: Any = import_peft()
    targets = config.targets
    targets = policy.parts.adapter_targets(config.preset) if targets is None else as_targets(targets)
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_dora=config.dora,
        use_rslora=config.rslora,
        target_modules=_matching(policy, targets),
        modules_to_save=modules_to_save(policy),
    )
    inject(policy, lora, name)
    _warn_of_rank(policy, config.rank)


def _warn_of_rank(policy: PolicyModule, rank: int) -> None:
    """Say where an update's rank exceeds what its layer can have: it takes memory, and adds nothing."""
    widths = {
        path: min(part.in_features, part.out_features)
        for path, part in _parts(policy)
        if not hasattr(part, "modules_to_save")
    }
    beyond = [path for path, width in widths.items() if width < rank]
    if beyond:
        logger.warning(
            "rank %d is more than %d of %d adapted layers can have: an update of %s is of rank %d at most",
            rank,
            len(beyond),
            len(widths),
            beyond[0],
            widths[beyond[0]],
        )


def modules_to_save(policy: PolicyModule) -> list[str]:
    """Return the full names of the modules that are trained whole next to an adapter."""
    existing = {name.replace(".base_layer", "") for name, _ in policy.named_modules()}
    return [name for name in policy.parts.modules_to_save if name in existing]


def inject(policy: PolicyModule, lora: Any, name: str) -> None:
    """Put the adapter that a `peft.LoraConfig` describes into a policy, and make it the active one.

    Raises:
        ConfigError: The name is taken or invalid.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"An adapter's name is made of letters, digits, '-' and '_'; got '{name}'.")
    if name in adapter_names(policy):
        raise ConfigError(f"The policy has an adapter '{name}' already; give another name.")
    if not adapter_names(policy):
        policy.base_fingerprint = fingerprint(policy)  # now: later on, the weights may be sharded
    peft: Any = import_peft()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Already found a `peft_config`"
        )  # a second adapter is not an accident
        peft.inject_adapter_in_model(lora, policy, adapter_name=name)
    policy.adapter_pipelines[policy.adapter] = policy.pipelines
    policy.adapter_pipelines[name] = dict(policy.pipelines)
    policy.trained_on[name] = policy.quantized
    set_adapter(policy, name)


def adapter_names(policy: PolicyModule) -> list[str]:
    """Return the names of the adapters in a policy, in the order in which they were added."""
    return [name for name in policy.adapter_pipelines if name is not None]


def set_adapter(policy: PolicyModule, name: str | None) -> None:
    """Make one of a policy's adapters, and its pipeline, the active one.

    Args:
        policy: The policy, changed in place.
        name: Name of the adapter; None is the base alone.

    Raises:
        ConfigError: The policy has no such adapter.
    """
    names = adapter_names(policy)
    if name is not None and name not in names:
        known = f"only {', '.join(names)}" if names else "nor any other"
        raise ConfigError(f"The policy has no adapter '{name}', {known}.{did_you_mean(name, names)}")
    policy.adapter_pipelines[policy.adapter] = policy.pipelines
    for _, part in _parts(policy):
        part.enable_adapters(name is not None)
        part.set_adapter([] if name is None else _of_this(part, name))
    policy.adapter = name
    policy.pipelines = policy.adapter_pipelines[name]
    train_adapter_only(policy)


def train_adapter_only(policy: PolicyModule) -> None:
    """Let only the active adapter require gradients."""
    policy.requires_grad_(False)
    for parameter in adapter_parameters(policy).values():
        parameter.requires_grad_(True)


def adapter_parameters(policy: PolicyModule) -> dict[str, nn.Parameter]:
    """Return the parameters of the active adapter by their names in the policy; none without one."""
    kinds = ("lora_A", "lora_B", "modules_to_save", "lora_magnitude_vector")
    marks = [f".{kind}.{policy.adapter}." for kind in kinds]
    return {name: one for name, one in policy.named_parameters() if any(mark in name for mark in marks)}


def cast_trained(policy: PolicyModule, dtype: torch.dtype) -> None:
    """Cast the parameters that require a gradient; in place, names do not change."""
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def cast_frozen(policy: PolicyModule, dtype: torch.dtype) -> None:
    """Cast the parameters that require no gradient; in place, names do not change.

    The base's fingerprint and the trained copies of modules were made before, in full precision.
    """
    for parameter in policy.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def fold_in(policy: PolicyModule) -> None:
    """Merge the active adapter into the weights; the policy then has no adapters.

    Other adapters are dropped. Best done in float32: the sum is rounded to the weights' dtype.

    Raises:
        ConfigError: No adapter is active, or the base is quantised.
    """
    if policy.quantized is not None:
        raise ConfigError(
            f"The base is stored in {policy.quantized}, where a sum would be rounded again: load it in "
            "full precision, as `vla merge` does."
        )
    if policy.adapter is None:
        raise ConfigError("No adapter is active in this policy, so there is nothing to merge.")
    name = policy.adapter
    for path, module in _parts(policy):
        if not hasattr(module, "modules_to_save"):
            module.merge(adapter_names=_of_this(module, name))
            plain = module.get_base_layer()
        else:
            plain = module.modules_to_save[name] if _of_this(module, name) else module.original_module
        _replace(policy, path, plain)
    del policy.peft_config  # type: ignore[attr-defined]
    policy.adapter, policy.adapter_pipelines, policy.trained_on = None, {}, {}
    policy.requires_grad_(True)


def remove_adapter(policy: PolicyModule, name: str) -> None:
    """Remove an adapter from a policy; the base becomes active, with its pipeline.

    Raises:
        ConfigError: The policy has no such adapter.
    """
    set_adapter(policy, name)
    set_adapter(policy, None)
    del policy.adapter_pipelines[name], policy.trained_on[name]
    del policy.peft_config[name]  # type: ignore[attr-defined]
    for path, part in _parts(policy):
        if hasattr(part, "modules_to_save"):
            held, plain = part.modules_to_save, part.original_module
        else:
            held, plain = part.lora_A, part.get_base_layer()
        if set(held) - {name}:
            part.delete_adapter(name, []) if hasattr(part, "modules_to_save") else part.delete_adapter(name)
        else:
            _replace(policy, path, plain)
    if not adapter_names(policy) and policy.quantized is None:
        policy.requires_grad_(True)


def base_parameters(policy: PolicyModule) -> dict[str, nn.Parameter]:
    """Return the parameters of the base by the names that they have without an adapter."""
    plain = {}
    for name, parameter in policy.named_parameters():
        if ".lora_" not in name and ".modules_to_save." not in name:
            plain[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = parameter
    return plain


def fingerprint(policy: PolicyModule) -> str:
    """Return the fingerprint of a policy's base: a hash of names, shapes and some of the values.

    Values are rounded to bfloat16 first, so that a base has one fingerprint in float32 and in bfloat16; up to
    64 of every tensor count. Adapters do not count. A quantised base keeps its fingerprint.
    """
    if policy.quantized is not None:
        assert policy.base_fingerprint is not None
        return policy.base_fingerprint
    digest = hashlib.sha256()
    for name, parameter in sorted(base_parameters(policy).items()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if parameter.is_meta:  # it has no values
            continue
        flat = parameter.detach().flatten()
        places = torch.arange(min(_SAMPLES, len(flat)), device=flat.device) * len(flat) // _SAMPLES
        values = flat[places if len(flat) > _SAMPLES else slice(None)].to(torch.bfloat16)
        digest.update(values.cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _matching(policy: PolicyModule, targets: str | tuple[str, ...]) -> str:
    """Return the expression for `peft`; raise where a target matches no linear layer."""
    plain = {name.replace(".base_layer", ""): module for name, module in policy.named_modules()}
    linear = [
        name for name, module in plain.items() if isinstance(module, nn.Linear) and ".lora_" not in name
    ]
    whole = tuple(modules_to_save(policy))
    linear = [name for name in linear if not name.startswith(whole)]
    if isinstance(targets, str) and (found := _matched(targets, linear)):
        others = [name for name, module in plain.items() if name not in linear]
        if not _matched(targets, others):
            return targets
        # `peft` refuses an expression that also matches blocks and norms; the names of the layers do not.
        return "|".join(re.escape(name) for name in found)
    named: set[str] = set()
    for target in targets.split(",") if isinstance(targets, str) else targets:
        named |= set(_named(policy, target.strip(), linear))
    return "|".join(re.escape(name) for name in linear if name in named)


def _matched(expression: str, names: list[str]) -> list[str]:
    """Return the names that an expression matches from start to end."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ConfigError(
            f"The adapter's targets '{expression}' are not a valid expression: {error}."
        ) from error
    return [name for name in names if pattern.fullmatch(name)]


def _named(policy: PolicyModule, target: str, linear: list[str]) -> list[str]:
    """Return the layers that one target means as in `peft`: by the end of their names, or all of them."""
    if target == ALL_LINEAR:
        preset = policy.parts.adapter_presets.get(ALL_LINEAR)
        return linear if preset is None else _matched(preset, linear)
    found = [name for name in linear if name == target or name.endswith(f".{target}")]
    if found := found or _matched(target, linear):
        return found
    ends = [end for end in dict.fromkeys(name.rpartition(".")[2] for name in linear) if not end.isdecimal()]
    hint = did_you_mean(target.replace("\\", ""), [*ends, *linear] if "." in target else ends)
    if target in modules_to_save(policy) or target in {
        one.rpartition(".")[2] for one in modules_to_save(policy)
    }:
        hint = " It is trained whole next to an adapter as it is: leave it out."
    raise ConfigError(
        f"The adapter's targets '{target}' match no linear layer of the policy.{hint} There are "
        f"{', '.join(ends)}, and by their full names such as {linear[0]}."
    )


def _replace(policy: PolicyModule, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(policy.get_submodule(parent), child, module)


def _parts(policy: PolicyModule) -> list[tuple[str, Any]]:
    """Return the modules that hold adapters, by name."""
    peft: Any = import_peft()
    kinds = (peft.tuners.tuners_utils.BaseTunerLayer, peft.utils.ModulesToSaveWrapper)
    return [(name, module) for name, module in policy.named_modules() if isinstance(module, kinds)]


def _of_this(part: Any, name: str) -> list[str]:
    """Return what to activate in one part: two adapters need not change the same layers."""
    held = part.modules_to_save if hasattr(part, "modules_to_save") else part.lora_A
    return [name] if name in held else []
