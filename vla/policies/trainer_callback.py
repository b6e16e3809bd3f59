"""What `transformers.Trainer` is told by its own events: what cannot be saved or read, before it trains.

And the weights of an adapter of `vla.adapters`, once more: in a checkpoint of a Trainer it looks for
`model.safetensors` to resume from and to take the best of, unless a policy is wrapped by PEFT.
"""

import logging
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from safetensors.torch import save
from torch.utils.data import ConcatDataset, Subset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import ParallelMode

from vla.adapters.files import check_saving, keep_base, write_base
from vla.adapters.lora import adapter_parameters
from vla.atomic import SaveError, atomic_write
from vla.checkpoints.module import PolicyModule
from vla.checkpoints.replace import check_replaceable
from vla.errors import ConfigError
from vla.weights.dtypes import rounded_weights
from vla.weights.run_folder import ADAPTERS_FILE, adapters_on

logger = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"
_OF_LANGUAGE_MODELS = {
    "label_smoothing_factor": "their loss is computed by the policy, of actions first of all",
    "neftune_noise_alpha": "noise on images and states is PolicyDataset(..., augment=True)",
}


class PolicyCallback(TrainerCallback):
    """One of the default callbacks of every Trainer; without effect on models that are not policies."""

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse options of language models, and a DDP that would wait for gradients that never come.

        Raises:
            ConfigError: One of them is set.
        """
        check_unused_parameters(kwargs.get("model"), args)
        if not isinstance(kwargs.get("model"), PolicyModule):
            return
        for option, reason in _OF_LANGUAGE_MODELS.items():
            if getattr(args, option, None):
                raise ConfigError(f"{option}={getattr(args, option)} is not for policies: {reason}.")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a folder that the policy cannot be saved into, and datasets of raw items; prepare pushes.

        Raises:
            SaveError: See `check_saving`.
            WeightsError: See there.
            ConfigError: A dataset's items are not a policy's tensors.
        """
        policy = kwargs.get("model")
        if not isinstance(policy_in(policy), PolicyModule):
            return
        check_trained(policy)
        warn_of_rounded_weights(policy)
        output = Path(str(args.output_dir))
        check_output(policy, output, args, state)
        if not isinstance(policy, PolicyModule):
            return
        for loader in (kwargs.get("train_dataloader"), kwargs.get("eval_dataloader")):
            refuse_raw_dataset(getattr(loader, "dataset", None))
        if policy.adapter is not None and args.should_save:
            keep_base(policy, output)
        if args.push_to_hub and str(args.hub_strategy) != "end" and args.should_save:
            # With each save the Trainer pushes weights and config, and what else lies in the folder.
            output.mkdir(parents=True, exist_ok=True)
            policy.save_pipelines(output)
            if policy.adapter is not None:
                write_base(policy, output)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the tensors of an adapter where the Trainer will look for them."""
        policy = kwargs.get("model")
        if not isinstance(policy, PolicyModule) or policy.adapter is None or not args.should_save:
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if folder.is_dir() and not args.fsdp and not args.deepspeed:
            tensors = {
                name: one.detach().cpu().contiguous() for name, one in adapter_parameters(policy).items()
            }
            atomic_write(folder / _WEIGHTS, save(tensors, metadata={"format": "pt"}))


def install() -> None:
    """Make the callback one of the Trainer's defaults, once."""
    defaults: list[Any] = transformers.trainer.DEFAULT_CALLBACKS
    if PolicyCallback not in defaults:
        defaults.append(PolicyCallback)


def policy_in(model: Any) -> Any:
    """Return the policy that PEFT has wrapped, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_unused_parameters(model: Any, args: TrainingArguments) -> None:
    """Raise `ConfigError` where DDP would not look for parameters that a step leaves out.

    The Trainer has decided it before any of its events: it does not look for them where `args` say so, or,
    of a whole model, where activations are recomputed.
    """
    policy, find = policy_in(model), args.ddp_find_unused_parameters
    is_ddp = args.parallel_mode == ParallelMode.DISTRIBUTED and not args.fsdp and not args.deepspeed
    if not isinstance(policy, PolicyModule) or not is_ddp or find or args.ddp_static_graph:
        return
    recomputes = policy.is_activation_checkpointing or args.activation_checkpointing
    if find is None and (policy is not model or not recomputes):
        return
    without: Any = getattr(policy, "prefixes_without_gradient", lambda _: ())
    unreached = [
        name
        for name, one in policy.named_parameters()
        if one.requires_grad and name.startswith(without(False))
    ]
    if unreached:
        said = "activation checkpointing, which turns it off," if find is None else "False"
        raise ConfigError(
            f"DDP needs TrainingArguments(ddp_find_unused_parameters=True), got {said}: without text "
            f"to learn no gradient reaches {unreached[0]} and {len(unreached) - 1} more, for which it would "
            "wait."
        )


def check_trained(model: Any) -> None:
    """Raise `ConfigError` where nothing would be trained, or what would be could not be saved."""
    if not any(one.requires_grad for one in model.parameters()):
        raise ConfigError(
            "None of the policy's parameters requires a gradient, so there is nothing to train: "
            "policy.requires_grad_(True), or add an adapter."
        )
    if policy_in(model) is not model and policy_in(model).adapter is not None:
        raise ConfigError(
            f"PEFT has wrapped a policy that has the adapter '{policy_in(model).adapter}' of its own, and "
            "the two could not be saved as one: merge that first (`vla merge`), and give the result to "
            "get_peft_model."
        )


def check_output(model: Any, output: Path, args: TrainingArguments, state: TrainerState) -> None:
    """Raise `SaveError` where the model cannot be saved into `output_dir`, or a base would be removed there.

    Args:
        model: A policy, or one that PEFT has wrapped.
        output: The folder.
        args: The Trainer's.
        state: The Trainer's: of checkpoints that are not saved again, nothing is asked.
    """

    def check(folder: Path) -> None:
        if isinstance(model, PolicyModule):
            check_saving(model, folder)
        else:
            check_replaceable(folder, is_adapter=True)

    check(output)
    for folder in output.glob("checkpoint-*") if str(args.save_strategy) != "no" else ():
        adapters = adapters_on(folder)
        if adapters and (args.save_total_limit or 0) > 0:
            raise SaveError(
                f"save_total_limit={args.save_total_limit} may remove {folder}, the base of adapters, which "
                f"are of no use without it: {adapters}. Leave it out, or give another output_dir; or remove "
                f"{folder / ADAPTERS_FILE} if none of them is needed."
            )
        step = folder.name.removeprefix("checkpoint-")
        if not adapters or not step.isdecimal() or int(step) > state.global_step:
            check(folder)


def warn_of_rounded_weights(model: Any) -> None:
    """Warn where weights are trained in a dtype in which most updates round to nothing."""
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    rounded = [(name, one.dtype) for name, one in trained if one.dtype in (torch.bfloat16, torch.float16)]
    if rounded:
        name, dtype = rounded[0]
        logger.warning("%s", rounded_weights(name, dtype, len(rounded), "TrainingArguments(bf16=True)"))


def refuse_raw_dataset(dataset: Any) -> None:
    """Raise `ConfigError` where a dataset's items are frames as they were recorded.

    Recognised by the window of frames that such a dataset has: this room knows none of their classes.
    """
    if isinstance(dataset, ConcatDataset):
        for one in dataset.datasets:
            refuse_raw_dataset(one)
    elif isinstance(dataset, Subset):
        refuse_raw_dataset(dataset.dataset)
    elif hasattr(dataset, "episode_slices"):
        raise ConfigError(
            f"A Trainer cannot train on a {type(dataset).__name__}, whose items are frames in robot units: "
            "give it vla.data.PolicyDataset(dataset, policy.pipeline), whose items are the policy's tensors."
        )
