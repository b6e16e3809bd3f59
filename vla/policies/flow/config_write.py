"""`config.json` of pi-0's family as other libraries write it."""

import json
import logging
from collections.abc import Callable
from typing import Any

import torch

from vla.errors import ConfigError
from vla.policies.flow.config import PUBLISHED_SIZES, FlowConfig
from vla.types import IMAGE_PREFIX, STATE_KEY
from vla.weights.dtypes import short_name
from vla.weights.formats import Format

logger = logging.getLogger(__name__)


def write_flow_config(
    policy: str,
    config: FlowConfig,
    format: Format,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Return the `config.json` of a format.

    Args:
        policy: "pi0" or "pi05".
        config: The policy's config.
        format: The format to write.
        dtype: Dtype of the weights.

    Raises:
        ConfigError: The format has no such config.
    """
    writers: dict[str, Callable[[], dict[str, Any]]] = {
        "vla": lambda: _vla(config, dtype),
        "lerobot": lambda: _lerobot(policy, config, dtype),
        "transformers": lambda: {
            "architectures": ["PI0ForConditionalGeneration"],
            "dtype": short_name(dtype),
            **transformers_fields(config),
        },
        "openpi": lambda: _openpi(policy, config, dtype),
    }
    if format.name not in writers:
        raise ConfigError(f"The format '{format.name}' can be read, but not written.")
    if config.max_action_prefix and (policy, format.name) not in _RECORD_ACTION_PREFIX:
        logger.warning(
            "%s's config of %s has no field for max_action_prefix=%d: it is read back by this library alone, "
            "and other readers take a policy that is never given first steps of a chunk.",
            format.name,
            policy,
            config.max_action_prefix,
        )
    return writers[format.name]()


def has_published_sizes(config: FlowConfig) -> bool:
    """Whether the sizes are those of the published models."""
    return all(getattr(config, name) == size for name, size in PUBLISHED_SIZES.items())


def _vla(config: FlowConfig, dtype: torch.dtype) -> dict[str, Any]:
    return {**json.loads(config.to_json_string(use_diff=False)), "dtype": short_name(dtype)}


def _lerobot(policy: str, config: FlowConfig, dtype: torch.dtype) -> dict[str, Any]:
    size = config.image_size
    mode = _LEROBOT_NORMALIZATION[policy]
    fields: dict[str, Any] = {
        "type": policy,
        "n_obs_steps": 1,
        "input_features": {
            **{
                f"{IMAGE_PREFIX}{name}": {"type": "VISUAL", "shape": [3, size, size]}
                for name in config.cameras
            },
            STATE_KEY: {"type": "STATE", "shape": [config.max_state_dim]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [config.max_action_dim]}},
        **_LEROBOT_COMMON,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "dtype": "bfloat16" if dtype == torch.bfloat16 else "float32",
        "chunk_size": config.action_horizon,
        "n_action_steps": config.action_horizon,
        **_flow_fields(config),
        "image_resolution": [size, size],
        "tokenizer_max_length": config.max_prompt_length,
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode},
        **_LEROBOT_TRAINING,
    }
    if policy == "pi05" and config.max_action_prefix:  # only later versions of LeRobot know the field
        fields["rtc_training_max_delay"] = config.max_action_prefix
    if not has_published_sizes(config):  # LeRobot cannot build such a model, but `transformers` can
        sizes = transformers_fields(config)
        fields |= {name: sizes[name] for name in ("model_type", "vlm_config", "dit_config", "loss_reduction")}
    return fields


def _openpi(policy: str, config: FlowConfig, dtype: torch.dtype) -> dict[str, Any]:
    if policy == "pi0" and config.max_state_dim != config.max_action_dim:
        raise ConfigError(
            f"openpi pads states and actions to one width, but this policy's are {config.max_state_dim} and "
            f"{config.max_action_dim} wide, so openpi could not open it."
        )
    return {
        "action_dim": config.max_action_dim,
        "action_horizon": config.action_horizon,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "precision": short_name(dtype),
    }


def _flow_fields(config: FlowConfig) -> dict[str, Any]:
    return {
        "max_state_dim": config.max_state_dim,
        "max_action_dim": config.max_action_dim,
        "num_inference_steps": config.num_inference_steps,
        "time_sampling_beta_alpha": config.tau_alpha,
        "time_sampling_beta_beta": 1.0,
        "time_sampling_scale": config.tau_scale,
        "time_sampling_offset": round(1.0 - config.tau_scale, 12),
        "min_period": config.min_period,
        "max_period": config.max_period,
    }


def transformers_fields(config: FlowConfig) -> dict[str, Any]:
    """Return the fields of `transformers`' `PI0Config` with a policy's sizes."""
    return {
        "model_type": "pi0",
        "chunk_size": config.action_horizon,
        **_flow_fields(config),
        "loss_reduction": "mean",
        "vlm_config": {
            "model_type": "paligemma",
            "text_config": _gemma(config, config.vlm_gemma.width, config.vlm_gemma.mlp_dim),
            "vision_config": {
                "model_type": "siglip_vision_model",
                "vision_use_head": False,
                "projection_dim": config.vlm_gemma.width,
                **config.siglip,
            },
            "projection_dim": config.vlm_gemma.width,
            "hidden_size": config.vlm_gemma.width,
            "vocab_size": config.vocab_size,
            "image_token_index": config.vocab_size,  # the first id that the table does not have
        },
        "dit_config": _gemma(config, config.expert_gemma.width, config.expert_gemma.mlp_dim),
    }


def _gemma(config: FlowConfig, width: int, mlp_dim: int) -> dict[str, Any]:
    return {
        "model_type": "gemma",
        "hidden_size": width,
        "intermediate_size": mlp_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "hidden_act": "gelu_pytorch_tanh",
    }


_RECORD_ACTION_PREFIX = (("pi0", "vla"), ("pi05", "vla"), ("pi05", "lerobot"))
"""Configs, by policy and format, that say how many first steps of a chunk may be known."""

_LEROBOT_NORMALIZATION = {"pi0": "MEAN_STD", "pi05": "QUANTILES"}

_LEROBOT_COMMON: dict[str, Any] = {
    "device": None,  # LeRobot takes what it finds
    "use_amp": False,
    "use_peft": False,
    "push_to_hub": True,
    "repo_id": None,
    "private": None,
    "tags": None,
    "license": None,
    "pretrained_path": None,
    "pretrained_revision": None,
}
_LEROBOT_TRAINING: dict[str, Any] = {
    "use_relative_actions": False,
    "relative_exclude_joints": ["gripper"],
    "action_feature_names": None,
    "rtc_config": None,
    "empty_cameras": 0,
    "gradient_checkpointing": False,
    "compile_model": False,
    "compile_mode": "max-autotune",
    "freeze_vision_encoder": False,
    "train_expert_only": False,
    "optimizer_lr": 2.5e-05,
    "optimizer_betas": [0.9, 0.95],
    "optimizer_eps": 1e-08,
    "optimizer_weight_decay": 0.01,
    "optimizer_grad_clip_norm": 1.0,
    "scheduler_warmup_steps": 1000,
    "scheduler_decay_steps": 30000,
    "scheduler_decay_lr": 2.5e-06,
}
"""LeRobot's defaults; what depends on the robot (features, normalisation) is set with its pipeline."""
