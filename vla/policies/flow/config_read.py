"""`config.json` of pi-0's family in every published format, read and completed from the tensors.

Most formats record few dimensions and none records all, so the tensors decide: a config must agree with
them. What neither records is our default, or comes from the config of ours that files written by this project
carry next to their tensors (`vla_config`).
"""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError

from vla.checkpoints.own import PREFIX
from vla.errors import ConfigError, WeightsError, did_you_mean
from vla.policies.flow.config import FlowConfig, renamed_sizes
from vla.policies.flow.formats import NUMERICS
from vla.policies.flow.sizes import Side, most_common, read_sizes
from vla.types import IMAGE_PREFIX, as_count
from vla.weights.formats import VLA_CONFIG, Format, Names, Stored

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=FlowConfig)

SIGLIP_HEADS = 16
"""Heads of every published SigLIP So400m, which only `transformers`' format records."""

_SIZES_IN_TRANSFORMERS = {
    "vision.hidden_size": "vlm_config.vision_config.hidden_size",
    "vision.intermediate_size": "vlm_config.vision_config.intermediate_size",
    "vision.num_hidden_layers": "vlm_config.vision_config.num_hidden_layers",
    "vision.num_attention_heads": "vlm_config.vision_config.num_attention_heads",
    "vision.image_size": "vlm_config.vision_config.image_size",
    "vision.patch_size": "vlm_config.vision_config.patch_size",
    "vlm.width": "vlm_config.text_config.hidden_size",
    "vlm.mlp_dim": "vlm_config.text_config.intermediate_size",
    "depth": "vlm_config.text_config.num_hidden_layers",
    "num_heads": "vlm_config.text_config.num_attention_heads",
    "num_kv_heads": "vlm_config.text_config.num_key_value_heads",
    "head_dim": "vlm_config.text_config.head_dim",
    "vocab_size": "vlm_config.text_config.vocab_size",
    "expert.width": "dit_config.hidden_size",
    "expert.mlp_dim": "dit_config.intermediate_size",
}
_FLOW_IN_TRANSFORMERS = {
    "max_state_dim": "max_state_dim",
    "max_action_dim": "max_action_dim",
    "action_horizon": "chunk_size",
    "num_inference_steps": "num_inference_steps",
    "tau_alpha": "time_sampling_beta_alpha",
    "tau_scale": "time_sampling_scale",
    "min_period": "min_period",
    "max_period": "max_period",
}
RECORDED: dict[str, dict[str, str]] = {
    "transformers": {**_SIZES_IN_TRANSFORMERS, **_FLOW_IN_TRANSFORMERS},
    "lerobot": {
        **_SIZES_IN_TRANSFORMERS,
        **_FLOW_IN_TRANSFORMERS,
        "max_prompt_length": "tokenizer_max_length",
        "max_action_prefix": "rtc_training_max_delay",
    },
    "openpi": {
        "max_action_dim": "action_dim",
        "action_horizon": "action_horizon",
        "max_prompt_length": "max_token_len",
        "discrete_state": "discrete_state_input",
    },
    "openpi-jax": {},
    "paligemma": {
        name: path.removeprefix("vlm_config.")
        for name, path in _SIZES_IN_TRANSFORMERS.items()
        if path.startswith("vlm_config.") and name != "vocab_size"
    },
}
"""Our field -> its place in a format's `config.json`. Dots lead into nested objects on either side."""

JAX_HEADS = {
    "num_heads": tuple(Side(f"PaliGemma.llm.layers.attn.q_einsum{end}.w", 1) for end in ("", "_1")),
    "head_dim": tuple(Side(f"PaliGemma.llm.layers.attn.q_einsum{end}.w", 3) for end in ("", "_1")),
    "num_kv_heads": tuple(Side(f"PaliGemma.llm.layers.attn.kv_einsum{end}.w", 2) for end in ("", "_1")),
    "vision.num_attention_heads": tuple(
        Side(f"PaliGemma.img.Transformer.encoderblock.MultiHeadDotProductAttention_0.{name}.kernel", 2)
        for name in ("query", "key", "value")
    ),
}
"""Axes of openpi's arrays that show the heads, which matrices do not."""

_CHANGES_MORE = {
    "use_peft": "an adapter belongs to these weights and is not in them; merge it (peft: merge_and_unload)",
    "adapt_to_pi_aloha": "ALOHA's joints and grippers are converted outside the recorded pipeline",
}
"""Fields of LeRobot's config by which the policy does more than its tensors and processors say."""

_NO_FIELDS = ("query_width", "key_width", "expert.depth")
"""Dimensions of tensors that are not fields of a config."""

PALIGEMMA_ROWS = {257_216: 257_152}
"""Rows of a published token table -> rows that the policies use: an image token and padding are left out."""


def read_flow_config(
    config_class: type[Config], stored: Stored, format: Format, overrides: dict[str, Any] | None = None
) -> Config:
    """Return the config of a stored policy.

    Args:
        config_class: The policy's config class.
        stored: The opened folder.
        format: Its format.
        overrides: Fields of the config to change, or that the format does not record
            (`action_horizon`, `num_kv_heads`).

    Raises:
        WeightsError: The config contradicts the tensors, or the heads cannot be determined.
        ConfigError: An override is unknown, is refused by the config, or contradicts the tensors.
    """
    asked = _flat_overrides(config_class, overrides or {})
    _refuse_other_policy(config_class, stored, format)
    names = format.read_names(stored.reader.infos)
    shown = {**read_sizes(names.shapes), **_heads_of_arrays(stored, names)}
    file = _recorded(config_class, stored, format)
    _refuse_contradiction(asked, shown, "You asked for", format, ConfigError)
    _refuse_contradiction(file, shown, f"{stored.folder / 'config.json'} says", format, WeightsError)

    fields: dict[str, Any] = {"numerics": NUMERICS[format.name]} if format.name in NUMERICS else {}
    if format.name == "openpi" and "max_action_dim" in file:
        fields["max_state_dim"] = file["max_action_dim"]  # openpi pads both to one width
    carried = _carried(stored, shown)
    fields |= {name: size for name, size in shown.items() if name not in _NO_FIELDS}
    fields |= {**carried, **file, **asked}
    if "cameras" in asked and "wrist_cameras" not in asked:
        fields.pop("wrist_cameras", None)  # those of other cameras; the config tells the new ones by name
    if format.crops_rows and "vocab_size" not in {**carried, **file, **asked} and "vocab_size" in fields:
        fields["vocab_size"] = PALIGEMMA_ROWS.get(fields["vocab_size"], fields["vocab_size"])
    fields |= _heads(stored, shown, fields)
    theirs = {ours: path for ours, path in RECORDED.get(format.name, {}).items() if ours in file}
    return make_config(
        config_class, fields, stored, {o: path for o, path in theirs.items() if o not in asked}
    )


def _refuse_other_policy(config_class: type[FlowConfig], stored: Stored, format: Format) -> None:
    """Raise where another library's config is of another policy than the tensors, or asks for more."""
    if format.name in ("vla", "paligemma"):
        return
    ours = str(config_class.model_type).removeprefix(PREFIX)
    path, said = stored.folder / "config.json", stored.config
    declared = said.get("type", said.get("model_type"))
    if declared is not None and declared not in (ours, PREFIX + ours):
        raise WeightsError(
            f"{path} is of the policy '{declared}', but the tensors are {ours}'s: one of the two was taken "
            "from another checkpoint."
        )
    if said.get("n_obs_steps") not in (None, 1):
        raise WeightsError(f"{path} reads n_obs_steps={said['n_obs_steps']} frames; {ours} reads 1.")
    for name, meaning in _CHANGES_MORE.items():
        if said.get(name):
            raise WeightsError(
                f"{path} says {name}={said[name]!r}: {meaning}. Set it to false if that is not so."
            )


def _flat_overrides(config_class: type[FlowConfig], overrides: Mapping[str, Any]) -> dict[str, Any]:
    known = set(config_class().to_dict())
    for name in config_class.renamed(overrides):
        if name not in known:
            hint = did_you_mean(name, [*known, *flatten(config_class().to_dict())])
            raise ConfigError(f"{config_class.__name__} has no field '{name}'.{hint}")
    return flatten(overrides)


def _heads_of_arrays(stored: Stored, names: Names) -> dict[str, int]:
    """Return the heads that the shapes of a JAX tree show; nothing for other files."""
    kinds = {names.canonical[name]: [info.shape] for name, info in stored.reader.infos.items()}
    found = {name: most_common(kinds, sides) for name, sides in JAX_HEADS.items()}
    return {name: size for name, size in found.items() if size is not None}


def _recorded(config_class: type[FlowConfig], stored: Stored, format: Format) -> dict[str, Any]:
    """Return the fields that `config.json` records, by our names."""
    if format.name == "vla":
        config_class.say_unknown(stored.config, str(stored.folder))
        return flatten(stored.config)
    fields = {}
    for ours, theirs in RECORDED[format.name].items():
        value: Any = stored.config
        for key in theirs.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            fields[ours] = value
    if format.name == "lerobot":
        fields |= _recorded_by_lerobot(stored)
    if format.name in ("lerobot", "transformers"):
        _warn_of_ignored(stored)
    return fields


def _recorded_by_lerobot(stored: Stored) -> dict[str, Any]:
    """Return the cameras, which LeRobot's config records in its own form; the image size is checked."""
    features = stored.config.get("input_features") or {}
    cameras = [
        name.removeprefix(IMAGE_PREFIX)
        for name, feature in features.items()
        if isinstance(feature, Mapping) and feature.get("type") == "VISUAL"
    ]
    empty = [f"empty_camera_{index}" for index in range(stored.config.get("empty_cameras") or 0)]
    cameras += [name for name in empty if name not in cameras]
    fields: dict[str, Any] = {"cameras": tuple(cameras)} if cameras else {}
    if "num_steps" in stored.config:  # the name in early files
        fields["num_inference_steps"] = stored.config["num_steps"]
    resolution = stored.config.get("image_resolution")
    if resolution and resolution[0] == resolution[1]:
        fields["vision.image_size"] = resolution[0]
    elif resolution:
        raise WeightsError(
            f"{stored.folder / 'config.json'} says image_resolution {resolution}, but the vision tower takes "
            "square images."
        )
    return fields


def _warn_of_ignored(stored: Stored) -> None:
    """Warn of a timestep distribution that our configs cannot express; nothing else depends on it."""
    scale = stored.config.get("time_sampling_scale", 0.999)
    offset = stored.config.get("time_sampling_offset", 1 - scale)
    if stored.config.get("time_sampling_beta_beta", 1.0) != 1.0 or abs(offset - (1 - scale)) > 1e-9:
        logger.warning(
            "%s: times were drawn from a distribution other than Beta(alpha, 1) up to tau_scale; training "
            "uses ours.",
            stored.folder / "config.json",
        )


def _refuse_contradiction(
    said: Mapping[str, Any],
    shown: Mapping[str, int],
    who: str,
    format: Format,
    error: type[WeightsError] | type[ConfigError],
) -> None:
    for name, size in shown.items():
        if name not in said or _agrees(name, said[name], shown):
            continue
        if name == "vocab_size" and format.crops_rows and said[name] < size:
            continue  # rows beyond the recorded vocabulary are left out
        theirs = RECORDED.get(format.name, {}).get(name, name) if error is WeightsError else name
        value = f"={said[name]!r}" if error is ConfigError else f" is {said[name]!r}"
        raise error(f"{who} {theirs}{value}, but the tensors have {size}.")


def _agrees(name: str, said: Any, shown: Mapping[str, int]) -> bool:
    """Whether a field fits the tensors, which show of an image only how many whole patches it holds."""
    if name == "vision.image_size" and type(said) is int:
        patch = shown["vision.patch_size"]
        return said // patch == shown[name] // patch
    return said == shown[name]


def _carried(stored: Stored, shown: Mapping[str, int]) -> dict[str, Any]:
    """Return our config from the tensors' metadata, where the tensors still agree with it."""
    text = stored.reader.metadata.get(VLA_CONFIG)
    if text is None:
        return {}
    try:
        carried = flatten(json.loads(text))
    except (json.JSONDecodeError, AttributeError) as error:
        raise WeightsError(
            f"{VLA_CONFIG} in the metadata of {stored.folder} is not a config: {error}."
        ) from error
    odd = [name for name in shown if name in carried and not _agrees(name, carried[name], shown)]
    if odd:
        logger.info(
            "%s: the config that it carries has another %s than its tensors, so it is not used.",
            stored.folder,
            odd[0],
        )
        return {}
    return carried


def _heads(stored: Stored, shown: Mapping[str, int], known: Mapping[str, Any]) -> dict[str, int]:
    """Return heads and their dimension: as recorded, else by the rule of all published models.

    That rule: one key/value head in either stack, 16 heads in the vision tower.
    """
    for name in ("num_kv_heads", "head_dim", "num_heads", "vision.num_attention_heads"):
        if name in known:
            as_count(known[name], f"{name} of the config of {stored.folder}")
    heads: dict[str, int] = {}
    if "query_width" in shown and "key_width" in shown:
        queries, keys = shown["query_width"], shown["key_width"]
        key_heads = known.get("num_kv_heads", 1)
        width = known.get("head_dim", keys // key_heads)
        number = known.get("num_heads", queries // width if width else 0)
        if key_heads * width != keys or number * width != queries:
            raise WeightsError(
                f"The projections in {stored.folder} make {queries} query and {keys} key channels, which "
                f"{number} heads and {key_heads} key/value heads of {width} channels do not fill. "
                "Where the file does not record its heads, give num_kv_heads and num_heads."
            )
        heads |= {"num_heads": number, "num_kv_heads": key_heads, "head_dim": width}
    if "vision.hidden_size" in shown:
        number = known.get("vision.num_attention_heads", SIGLIP_HEADS)
        if shown["vision.hidden_size"] % number:
            raise WeightsError(
                f"The vision tower in {stored.folder} is {shown['vision.hidden_size']} wide, which {number} "
                "heads do not divide. Where the file does not record its heads, give "
                "vision={'num_attention_heads': ...}."
            )
        heads["vision.num_attention_heads"] = number
    return heads


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{"vlm.width": 64}` for `{"vlm": {"width": 64}}`; only the three objects of sizes are opened."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if name in ("vision", "vlm", "expert") and isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": size for inner, size in renamed_sizes(value).items()}
        else:
            flat[FlowConfig.old_names.get(name, name)] = value
    return flat


def make_config(
    config_class: type[Config], flat: Mapping[str, Any], stored: Stored, theirs: Mapping[str, str]
) -> Config:
    """Build a config from flat fields.

    Args:
        config_class: Its class.
        flat: The fields.
        stored: The opened folder.
        theirs: What the fields that its config.json records are called there.

    Raises:
        ConfigError: A field has a value that the config refuses.
    """
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        outer, _, inner = name.partition(".")
        if not inner:
            nested[outer] = value
            continue
        if nested.get(outer) is None:  # null in the file
            nested[outer] = {}
        if not isinstance(nested[outer], dict):
            raise ConfigError(
                f"The config of {stored.folder} is refused: '{outer}' must map names to sizes, got "
                f"{nested[outer]!r}."
            )
        nested[outer][inner] = value
    try:
        return config_class.from_dict(nested)
    except (ConfigError, StrictDataclassError) as error:
        detail = " ".join(str(error.__cause__ or error).split())
        if names := [ours for ours in theirs if theirs[ours] != ours and re.search(rf"\b{ours}\b", detail)]:
            detail += f" ('{names[0]}' is '{theirs[names[0]]}' in config.json)"
        raise ConfigError(f"The config of {stored.folder} is refused: {detail}") from error
