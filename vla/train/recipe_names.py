"""What the keys of a recipe are called elsewhere: by LeRobot, transformers, peft, and in other habits."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vla.errors import did_you_mean

_ELSEWHERE = {
    "train.learning_rate": "lr",
    "train.final_learning_rate": "decay_lr min_lr final_lr",
    "train.steps": "epochs num_epochs num_train_epochs max_epochs max_steps num_steps num_train_steps "
    "total_steps",
    "train.batch_size": "batch bs per_device_train_batch_size micro_batch_size",
    "train.accumulation": "gradient_accumulation_steps accumulate_grad_batches grad_accum",
    "train.clip_norm": "max_grad_norm grad_clip_norm gradient_clip_val gradient_clipping",
    "train.warmup_steps": "warmup num_warmup_steps warmup_ratio lr_warmup_steps",
    "train.decay_steps": "num_decay_steps",
    "train.weight_decay": "wd",
    "train.betas": "adam_beta1 adam_beta2 beta1 beta2",
    "train.eps": "adam_epsilon epsilon",
    "train.optimizer": "optim",
    "train.precision": "bf16 fp16 mixed_precision amp use_amp dtype torch_dtype",
    "train.activation_checkpointing": "gradient_checkpointing grad_checkpointing",
    "train.compile": "torch_compile compile_model",
    "train.save_every": "save_freq save_steps save_interval save_strategy",
    "train.keep_last": "save_total_limit max_to_keep keep_checkpoints",
    "train.log_every": "log_freq logging_steps log_interval",
    "train.validate_every": "eval_freq eval_steps eval_interval eval_every val_every eval_strategy",
    "train.trackers": "wandb trackio report_to logger loggers",
    "train.ema": "ema_decay use_ema",
    "train.seed": "random_seed data_seed",
    "data.path": "repo_id dataset dataset_path data_path root",
    "data.num_workers": "dataloader_num_workers workers",
    "data.augment": "image_transforms augmentation augmentations image_aug",
    "data.cameras": "rename_map camera_keys image_keys camera_names",
    "data.validation_fraction": "val_fraction val_split validation_split test_size",
    "data.normalization": "normalization_mapping norm_mode",
    "data.delta_mask": "delta_actions use_delta use_delta_joint_actions use_delta_joint_actions_aloha",
    "output": "output_dir out out_dir save_dir run_dir logging_dir",
    "policy.type": "model model_type policy_type",
    "policy.pretrained": "policy.path pretrained_path checkpoint checkpoint_path base_model init_from "
    "base_model_name_or_path model_name_or_path pretrained_model_name_or_path",
    "policy.tokenizer": "tokenizer_name processing_class",
    "policy.freeze": "freeze_vision_encoder train_expert_only freeze_vision_tower",
    "policy.config.action_horizon": "chunk_size horizon n_action_steps",
    "policy.adapter": "lora peft",
    "policy.adapter.rank": "r lora_r lora_rank",
    "policy.adapter.alpha": "lora_alpha",
    "policy.adapter.dropout": "lora_dropout",
    "policy.adapter.targets": "target_modules lora_target_modules",
    "policy.adapter.dora": "use_dora",
    "policy.adapter.rslora": "use_rslora",
    "policy.adapter.quantize": "load_in_4bit load_in_8bit quantization_config",
}
"""Key of a recipe -> what it is called elsewhere; with its section where the name alone would say little."""

OURS = {theirs: ours for ours, names in _ELSEWHERE.items() for theirs in names.split()}
_RESUMING = ("resume", "resume_from_checkpoint", "resume_from")


def unknown_key(key: str, value: Any, known: Iterable[str]) -> str:
    """Return the complaint about a key that no recipe has, with the one that may have been meant.

    Args:
        key: With its sections.
        value: What was given for it; of a section, the keys in it are what somebody wanted.
        known: All keys of a recipe, with their sections.
    """
    known = list(known)
    sections = {one.rpartition(".")[0] for one in known} - {""}
    misspelt = did_you_mean(key, sections) if isinstance(value, Mapping) else ""
    for leaf in (key, *_leaves(key, value)):
        *above, last = leaf.split(".")
        if last in _RESUMING:
            return f"unknown key '{leaf}'. A run is resumed by `vla train --resume`."
        if leaf == key and isinstance(value, Mapping):
            continue
        if ours := OURS.get(".".join([*above[-1:], last])) or OURS.get(last):
            return f"unknown key '{leaf}'. Did you mean '{ours}'?"
        if leaf != key and not misspelt and any(one.endswith(f".{last}") for one in known):
            return f"unknown key '{leaf}'.{did_you_mean(last, known)}"
    ours = OURS.get(key.rpartition(".")[2])
    elsewhere = f" Did you mean '{ours}'?" if ours else did_you_mean(key, known)
    return f"unknown key '{key}'.{misspelt or elsewhere}"


def _leaves(key: str, value: Any) -> Iterator[str]:
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        if isinstance(inner, Mapping):
            yield from _leaves(f"{key}.{name}", inner)
        else:
            yield f"{key}.{name}"
