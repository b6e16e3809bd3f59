"""What `transformers.Trainer` is told by its own events: what cannot be saved or read, before it trains.

And the weights of an adapter of `vla.adapters`, once more: in a checkpoint of a Trainer it looks for
`model.safetensors` to resume from and to take the best of, unless a policy is wrapped by PEFT.
"""

import inspect
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from safetensors.torch import save
from torch.distributed.tensor import DTensor
from torch.utils.data import ConcatDataset, Subset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import ParallelMode

from vla.adapters.files import check_saving, keep_base, write_base
from vla.adapters.lora import adapter_parameters
from vla.atomic import SaveError, atomic_write
from vla.checkpoints.agreement import check_agreement
from vla.checkpoints.module import PolicyModule
from vla.checkpoints.replace import check_replaceable
from vla.checkpoints.savable import check_finite
from vla.errors import ConfigError, TrainingError, VlaError, WeightsError
from vla.transforms.base import Pipeline
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
        model = uncompiled(kwargs.get("model"))
        check_unused_parameters(model, args)
        if not isinstance(policy_in(model), PolicyModule):
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
            ConfigError: A dataset's items are not a policy's tensors, or the policy has no pipeline and the
                training set has none for it.
        """
        policy = uncompiled(kwargs.get("model"))
        if not isinstance(policy_in(policy), PolicyModule):
            return
        check_trained(policy)
        warn_of_rounded_weights(policy)
        output = Path(str(args.output_dir))
        check_output(policy, output, args, state)
        loader = kwargs.get("train_dataloader")
        for dataset in (getattr(loader, "dataset", None), *evaluated()):
            refuse_raw_dataset(dataset)
        settle_pipeline(policy_in(policy), getattr(loader, "dataset", None))
        if not isinstance(policy, PolicyModule):
            return
        if policy.adapter is not None and args.should_save:
            keep_base(policy, output)
        if args.push_to_hub and str(args.hub_strategy) != "end" and args.should_save:
            # With each save the Trainer pushes weights and config, and what else lies in the folder.
            output.mkdir(parents=True, exist_ok=True)
            policy.save_pipelines(output)
            if policy.adapter is not None:
                write_base(policy, output)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the weights before PEFT saves its own, which are not looked at there.

        Raises:
            TrainingError: One of those that are trained is not finite.
        """
        model = uncompiled(kwargs.get("model"))
        if control.should_save and policy_in(model) is not model:
            refuse_diverged(model, args, state)

    on_epoch_end = on_step_end

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Stop at a step that is not finite, which the Trainer takes, and logs with another loss.

        Raises:
            TrainingError: Loss or gradient are not finite; in float16, where the scaler of gradients leaves
                such steps out, the weights are not.
        """
        model = uncompiled(kwargs.get("model"))
        if not isinstance(policy_in(model), PolicyModule):
            return
        values = {
            name: float(one) for name in ("loss", "grad_norm") if (one := (logs or {}).get(name)) is not None
        }
        if all(map(math.isfinite, values.values())):
            return
        if args.fp16:
            refuse_diverged(model, args, state)
            return
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise TrainingError(
            f"Step {state.global_step} is not finite ({shown}), and was taken, so that the weights are of no "
            f"use; {last_checkpoint(args, state)}. A smaller learning_rate or max_grad_norm may help."
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the weights that the training leaves.

        Raises:
            TrainingError: One of those that were trained is not finite.
        """
        model = uncompiled(kwargs.get("model"))
        if isinstance(policy_in(model), PolicyModule):
            refuse_diverged(model, args, state)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the tensors of an adapter where the Trainer will look for them."""
        policy = uncompiled(kwargs.get("model"))
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


def uncompiled(model: Any) -> Any:
    """Return the model that `torch.compile` has wrapped, or the model itself."""
    return getattr(model, "_orig_mod", model)


def evaluated() -> Iterator[Any]:
    """Yield the datasets that the calling Trainer will evaluate on, of which its events do not tell."""
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), Trainer):
        frame = frame.f_back
    found = None if frame is None else frame.f_locals["self"].eval_dataset
    yield from found.values() if isinstance(found, Mapping) else [found]


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


def refuse_diverged(model: Any, args: TrainingArguments, state: TrainerState) -> None:
    """Raise `TrainingError` where a weight that is trained is not finite."""
    try:
        for name, one in model.named_parameters():
            if one.requires_grad:
                check_finite(name, one.to_local() if isinstance(one, DTensor) else one)
    except WeightsError as error:
        place = str(error).partition(",")[0]
        raise TrainingError(
            f"After step {state.global_step} the weights are not finite ({place}): the training has "
            f"diverged, so that they are of no use; {last_checkpoint(args, state)}. A smaller learning_rate "
            "or max_grad_norm may help."
        ) from error


def last_checkpoint(args: TrainingArguments, state: TrainerState) -> str:
    """Return which checkpoint a Trainer has saved last, in words."""
    folders = Path(str(args.output_dir)).glob("checkpoint-*")
    steps = {name: one for one in folders if (name := one.name.removeprefix("checkpoint-")).isdecimal()}
    saved = [
        int(step) for step, one in steps.items() if int(step) <= state.global_step and any(one.iterdir())
    ]
    return f"the last checkpoint is {steps[str(max(saved))]}" if saved else "nothing has been saved yet"


def warn_of_rounded_weights(model: Any) -> None:
    """Warn where weights are trained in a dtype in which most updates round to nothing."""
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    rounded = [(name, one.dtype) for name, one in trained if one.dtype in (torch.bfloat16, torch.float16)]
    if rounded:
        name, dtype = rounded[0]
        logger.warning("%s", rounded_weights(name, dtype, len(rounded), "TrainingArguments(bf16=True)"))


def refuse_raw_dataset(dataset: Any) -> None:
    """Raise `ConfigError` where a dataset's items are frames as they were recorded."""
    for one in _parts(dataset):
        if hasattr(one, "episode_slices"):
            raise ConfigError(
                f"A Trainer cannot train on a {type(one).__name__}, nor evaluate on it: its items are frames "
                "in robot units. Give it vla.data.PolicyDataset(dataset, policy.pipeline), whose items are "
                "the policy's tensors."
            )


def settle_pipeline(policy: Any, dataset: Any) -> None:
    """Let a policy without a pipeline, which could not act once saved, have that of its training set.

    Args:
        policy: With one of another robot, it is trained as it is, and a warning says so.
        dataset: What it is trained on; a `PolicyDataset` has a pipeline, and so may others.

    Raises:
        ConfigError: The policy has none, and the training set has none either, several, or one that makes
            something else than the policy reads.
    """
    pipelines: list[Pipeline] = []
    for one in _parts(dataset):
        own = getattr(one, "pipeline", None)
        if isinstance(own, Pipeline) and not any(_alike(own, other) for other in pipelines):
            pipelines.append(own)
    if not policy.pipelines and len(pipelines) != 1:
        has = f"{len(pipelines)} different ones" if pipelines else "none for it"
        raise ConfigError(
            f"The policy has no pipeline, and its training set has {has}: it would be saved as one that "
            "cannot act. Set policy.pipeline to that of the robot first (make_pipeline of the policy's "
            "package), and train on PolicyDataset(dataset, policy.pipeline)."
        )
    if not policy.pipelines:
        try:
            check_agreement(policy, pipelines[0])
        except VlaError as error:
            said = "The policy has no pipeline, and that of its training set does not fit it"
            raise ConfigError(f"{said}: {error}") from error
        policy.pipeline = pipelines[0]
        logger.info("The policy had no pipeline: it takes that of the training set, and is saved with it.")
    for one in pipelines:
        if all(one.statistics != other.statistics for other in policy.pipelines.values()):
            logger.warning(
                "The training set is normalised by other statistics than the policy's pipeline, by which the "
                "policy acts: set policy.pipeline to that of the training set if that is its robot."
            )
            break


def _alike(one: Pipeline, other: Pipeline) -> bool:
    first, second = ([(step.name, step.to_json()) for step in both.transforms] for both in (one, other))
    return one is other or (first == second and one.statistics == other.statistics)


def _parts(dataset: Any) -> Iterator[Any]:
    """Yield the datasets that one is made of; known by what they have, since this room knows no classes."""
    if isinstance(dataset, ConcatDataset):
        for one in dataset.datasets:
            yield from _parts(one)
    elif isinstance(dataset, Subset):
        yield from _parts(dataset.dataset)
    else:
        yield dataset
