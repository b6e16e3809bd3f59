"""Keywords of `transformers`' loading and saving, as its users type them: taken, or one line that names ours.

A keyword is accepted with the values that mean here what they mean there; any other value is an error that
says what to give instead. Nothing is accepted and then forgotten, but for what is true here anyway, and
`trust_remote_code`, of which the log says that no code of a checkpoint is ever run.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from vla.atomic import read_json
from vla.errors import ConfigError, did_you_mean
from vla.paths import expanded
from vla.policies.registry import name_of, policy_entry, policy_names
from vla.weights.run_folder import chosen_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Only:
    """A keyword that has no counterpart here.

    Attributes:
        values: What may be given all the same, since it asks for what is done anyway.
        instead: What to do in place of anything else.
    """

    values: tuple[Any, ...]
    instead: str


_ONE_DEVICE = (
    "a policy lies on one device as a whole: give device=, and dtype= or quantize= if it is too large"
)
_MANY_PROCESSES = (
    "to train on several devices, `vla train` is launched with accelerate (docs/train_at_scale.md)"
)
_EXACT = "tensors are loaded exactly or not at all, and config= changes the fields that no tensor decides"

LOADING: Mapping[str, _Only] = {
    "state_dict": _Only((None,), "load the policy first, then call policy.load_state_dict(...)"),
    "ignore_mismatched_sizes": _Only((False,), _EXACT),
    "proxies": _Only((None,), "set HTTPS_PROXY in the environment"),
    "attn_implementation": _Only(
        (None, "sdpa"),
        "attention is PyTorch's scaled_dot_product_attention ('sdpa'), which chooses a flash kernel by "
        "itself: leave it out",
    ),
    "experts_implementation": _Only((None,), "policies have no layers of that kind: leave it out"),
    "max_memory": _Only((None,), _ONE_DEVICE),
    "offload_folder": _Only((None,), _ONE_DEVICE),
    "offload_buffers": _Only((None, False), _ONE_DEVICE),
    "offload_state_dict": _Only((None, False), _ONE_DEVICE),
    "distributed_config": _Only((None,), _MANY_PROCESSES),
    "device_mesh": _Only((None,), _MANY_PROCESSES),
    "tp_plan": _Only((None,), _MANY_PROCESSES),
    "tp_size": _Only((None,), _MANY_PROCESSES),
    "variant": _Only((None,), "a folder holds one set of weights: dtype= converts it while loading"),
    "use_safetensors": _Only((None, True), "weights are read from safetensors; a pickle is never opened"),
    "weights_only": _Only((True,), "weights are read from safetensors; a pickle is never opened"),
    "fusion_config": _Only((None, False), "policies have no such variants: leave it out"),
    "key_mapping": _Only((None,), "names are recognised by the tensors themselves (`vla info` says which)"),
    "gguf_file": _Only(
        (None,), "weights are read from safetensors or orbax: quantize= stores them in few bits"
    ),
    "from_tf": _Only((False,), "weights are read from safetensors or orbax"),
    "from_flax": _Only((False,), "weights are read from safetensors or orbax"),
    "load_in_4bit": _Only((False,), 'give quantize="4bit"'),
    "load_in_8bit": _Only((False,), 'give quantize="8bit"'),
    "use_auth_token": _Only((None,), "it is called token= now"),
}
"""What `from_pretrained` of transformers takes and ours does not."""

MEANINGLESS = frozenset(
    {"low_cpu_mem_usage", "disable_mmap", "code_revision", "resume_download", "_from_auto", "_commit_hash"}
)
"""What changes nothing here: weights are always streamed, without a second copy or a memory map, and no code
is downloaded that could have a revision."""

OURS = (
    "dtype", "device", "revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder",
    "config", "tokenizer", "asset_id", "quantize", "base", "load_weights", "output_loading_info",
)  # fmt: skip
"""Keywords of `vla.policies.base.Policy.from_pretrained`."""

TRANSLATED = frozenset({"torch_dtype", "device_map", "quantization_config", "trust_remote_code"})

_TYPES: Mapping[str, tuple[Any, str]] = {
    "revision": (str | None, "a branch, tag or commit"),
    "token": (str | bool | None, "text, True or False"),
    "cache_dir": (str | PathLike | None, "a folder"),
    "local_files_only": (bool | None, "True or False"),
    "force_download": (bool | None, "True or False"),
    "subfolder": (str | None, "the path of a folder"),
    "base": (str | PathLike | None, "a folder, a hub id or a short name"),
    "output_loading_info": (bool | None, "True or False"),
    "config": (Mapping | PreTrainedConfig | str | PathLike | None, "fields by name, a config or its folder"),
}

SAVING: Mapping[str, _Only] = {
    "safe_serialization": _Only((None, True), "weights are written as safetensors only"),
    "variant": _Only((None,), "a folder holds one set of weights: choose another folder"),
    "save_peft_format": _Only((True,), "adapters are written as peft reads them"),
    "save_original_format": _Only((True, False), ""),
    "distributed_checkpoint": _Only(
        (False,), "train.checkpoints=sharded of `vla train` writes such checkpoints"
    ),
}
"""What `save_pretrained` of transformers takes and ours does not."""

UPLOADING: Mapping[str, _Only] = {
    "safe_serialization": SAVING["safe_serialization"],
    "variant": SAVING["variant"],
    "use_temp_dir": _Only(
        (None, True), "files are always written to the folder for temporary files (TMPDIR) first"
    ),
    "commit_description": _Only((None, ""), "say it in commit_message"),
    "tags": _Only((None,), "the model card has the policy's; add yours to README.md on the hub"),
}
"""What `push_to_hub` of transformers takes and ours does not."""


def check_types(**options: Any) -> None:
    """Raise `ConfigError` unless keywords of loading are of the types that they are documented with."""
    for name, value in options.items():
        wanted, said = _TYPES[name]
        if not isinstance(value, wanted):
            raise ConfigError(f"from_pretrained({name}={_shown(value)}): it must be {said}.")


def check_shard_size(size: Any) -> None:
    """Raise `ConfigError` unless the largest size of a file is a number of bytes, or such as "5GB"."""
    is_number = isinstance(size, int) and not isinstance(size, bool) and size > 0
    found = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*[KMGT]B\s*", size, re.IGNORECASE)
        if isinstance(size, str)
        else None
    )
    if not is_number and not (found and float(found[1]) > 0):
        raise ConfigError(
            f'max_shard_size is a number of bytes above 0, or text such as "5GB", got {_shown(size)}.'
        )


def check_only(method: str, table: Mapping[str, _Only], options: dict[str, Any]) -> None:
    """Take the keywords of a table out of `options`.

    Args:
        method: What was called, for messages.
        table: `LOADING`, `SAVING` or `UPLOADING`.
        options: Keywords as given; those of the table are removed.

    Raises:
        ConfigError: One of them asks for what is not done here.
    """
    for name in [name for name in options if name in table]:
        value, only = options.pop(name), table[name]
        if not any(value is one or (type(value) is type(one) and value == one) for one in only.values):
            raise ConfigError(f"{method}({name}={_shown(value)}): {only.instead}.")


def translate(options: dict[str, Any]) -> dict[str, Any]:
    """Turn transformers' keywords of `from_pretrained` into ours.

    Args:
        options: Keywords that ours has not; what is translated, true anyway or refused is removed, so that
            what is left is unknown.

    Returns:
        Some of `dtype`, `device` and `quantize`.

    Raises:
        ConfigError: One of them asks for what is not done here.
    """
    check_only("from_pretrained", LOADING, options)
    for name in MEANINGLESS:
        options.pop(name, None)
    if options.pop("trust_remote_code", None):
        logger.warning("trust_remote_code is ignored: no code of a checkpoint is ever run.")
    ours: dict[str, Any] = {}
    if (dtype := options.pop("torch_dtype", None)) is not None:
        ours["dtype"] = dtype
    if (place := options.pop("device_map", None)) is not None:
        ours["device"] = device_of(place)
    if (quantization := options.pop("quantization_config", None)) is not None:
        ours["quantize"] = _quantize_of(quantization)
    return ours


def merged(given: Mapping[str, Any], translated: Mapping[str, Any]) -> dict[str, Any]:
    """Return our keywords with the translated ones among them.

    Raises:
        ConfigError: The two contradict each other.
    """
    theirs = {"dtype": "torch_dtype", "device": "device_map", "quantize": "quantization_config"}
    both = dict(given)
    for name, value in translated.items():
        if both.get(name) not in (None, value):
            raise ConfigError(
                f"{name}={_shown(both[name])} and {theirs[name]} ask for different things: give {name} alone."
            )
        both[name] = value
    return both


def config_with(config: Any, fields: Mapping[str, Any], policy_class: type[Any]) -> Any:
    """Return what `config=` gives, with the fields of a config that were given as keywords.

    Args:
        config: Fields, a whole config, the folder of one, or None.
        fields: Keywords that are left, which must be fields then, as in `transformers`.
        policy_class: Whose `from_pretrained` was called.

    Raises:
        ConfigError: A keyword is neither ours nor a field of a config; or there is a whole config, too.
    """
    if not fields:
        return config
    names = [name_of(policy_class.config_class)]  # "" of a class of several policies
    names = names if names[0] else policy_names()
    known = {field for name in names for field in policy_entry(name).config().to_dict()}
    for name in fields:
        if name not in known:
            hint = did_you_mean(name, {*known, *OURS})
            raise ConfigError(
                f"from_pretrained has no keyword '{name}', nor has the config such a field.{hint}"
            )
    if not (config is None or isinstance(config, Mapping)):
        raise ConfigError(
            f"from_pretrained got a whole config, and {', '.join(sorted(fields))} next to it: set the fields "
            "in the config."
        )
    return {**(config or {}), **fields}


def check_attention(config: Any) -> None:
    """Raise `ConfigError` where a whole config asks for another attention, as AutoModel passes it on."""
    if isinstance(config, PreTrainedConfig):
        try:
            check_only("from_pretrained", LOADING, {"attn_implementation": config._attn_implementation})
        except ConfigError as error:
            if config.output_attentions:  # transformers then asks for it
                raise ConfigError(
                    "output_attentions=True needs another attention than PyTorch's "
                    "scaled_dot_product_attention, which gives no weights: leave it out."
                ) from error
            raise


def config_fields(config: Any, stored: Any) -> dict[str, Any]:
    """Return the fields by which a given config differs from that of a checkpoint.

    Args:
        config: A whole config, or its folder.
        stored: The checkpoint's config.

    Raises:
        ConfigError: It is the config of another policy, or there is none.
    """
    if isinstance(config, str | Path):
        config = read_config_of(type(stored), config)
    if type(config) is not type(stored):
        raise ConfigError(
            f"config is a {type(config).__name__}, but the checkpoint holds a {type(stored).__name__}'s "
            "policy; config= takes that class, or a dictionary of the fields to change."
        )
    theirs = stored.to_dict()
    own = theirs.keys() - PreTrainedConfig().to_dict().keys()
    return {name: value for name, value in config.to_dict().items() if name in own and value != theirs[name]}


def read_config_of(config_class: Any, folder: str | Path) -> Any:
    """Return the config that lies in a folder.

    Raises:
        ConfigError: There is none, or it is not of this class.
        WeightsError: The folder is that of a training run without a checkpoint.
    """
    path = expanded(folder)
    path = chosen_checkpoint(path) / "config.json" if path.is_dir() else path
    values = read_json(path, ConfigError)
    if values.get("model_type") != config_class.model_type:
        raise ConfigError(
            f"{path} is not the config of a {config_class.__name__}: {values.get('model_type')}."
        )
    config_class.say_unknown(values, str(path.parent))
    try:
        return config_class.from_dict(values)
    except StrictDataclassError as error:
        detail = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"{path} is refused: {detail}") from error


def nothing_missing() -> dict[str, Any]:
    """Return what `output_loading_info=True` gives next to a policy that fits exactly."""
    return {
        "missing_keys": set(),
        "unexpected_keys": set(),
        "mismatched_keys": set(),
        "error_msgs": [],
    }


def device_of(device_map: Any) -> torch.device:
    """Return the one device that a `device_map` of transformers puts everything on.

    Args:
        device_map: A device, its number, a dictionary of modules' devices, or one of "auto", "balanced",
            "balanced_low_0" and "sequential", which take the accelerator where there is one.

    Raises:
        ConfigError: It names several devices, the disk, or nothing that exists.
    """
    if isinstance(device_map, Mapping) and device_map:
        devices = {device_of(place) for place in device_map.values()}
        if len(devices) != 1:
            raise ConfigError(f"from_pretrained(device_map={_shown(device_map)}): {_ONE_DEVICE}.")
        return devices.pop()
    if isinstance(device_map, str) and device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        if torch.accelerator.is_available():
            return torch.accelerator.current_accelerator() or torch.device("cpu")
        return torch.device("cpu")
    if isinstance(device_map, str) and device_map in ("disk", "meta"):
        raise ConfigError(f"from_pretrained(device_map={_shown(device_map)}): {_ONE_DEVICE}.")
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        if isinstance(device_map, int) and not isinstance(device_map, bool):
            device = torch.device("cuda" if here is None else here.type, device_map)
        else:
            device = torch.device(device_map)  # type: ignore[arg-type]  # anything is tried
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"from_pretrained(device_map={_shown(device_map)}): no such device.") from error
    there = here is not None and device.type == here.type
    if device.type != "cpu" and not (there and (device.index or 0) < torch.accelerator.device_count()):
        raise ConfigError(f"from_pretrained(device_map={_shown(device_map)}): no such device here.")
    return device


def _quantize_of(config: Any) -> str:
    """Return the kind of quantisation that a `BitsAndBytesConfig`, or its dictionary, asks for."""
    fields = dict(config if isinstance(config, Mapping) else getattr(config, "to_dict", dict)())
    if fields.get("load_in_8bit") and fields.get("llm_int8_threshold", 6.0) == 6.0:
        return "8bit"
    is_nf4 = fields.get("bnb_4bit_quant_type") == "nf4" and fields.get("bnb_4bit_use_double_quant")
    if fields.get("load_in_4bit") and is_nf4:
        return "4bit"
    raise ConfigError(
        'from_pretrained(quantization_config=...): give quantize="4bit" (NF4 with double quantisation) or '
        'quantize="8bit" (LLM.int8 with the threshold 6); there are no others.'
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
