"""What a policy is: the one contract that training, evaluation, serving and measuring rely on.

A policy's package exports its config (`PolicyConfig`), its policy (`Policy`) and `make_pipeline`; whatever is
declared below has a default, so that a policy writes what it does otherwise. `tests/contract/` runs all of it
over every policy; docs/add_a_policy.md goes through it question by question.
"""

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.utils import ModelOutput

from vla.adapters.files import check_storable, keep_base, load_with_base, write_adapter
from vla.adapters.quantize import load_quantized
from vla.atomic import SaveError
from vla.checkpoints.empty import measured
from vla.checkpoints.hub.push import own_repository, push
from vla.checkpoints.keywords import (
    SAVING,
    UPLOADING,
    check_attention,
    check_only,
    check_shard_size,
    check_types,
    config_with,
    merged,
    nothing_missing,
    translate,
)
from vla.checkpoints.module import LoadedFrom, PolicyModule
from vla.checkpoints.replace import finish_save, leaving_no_empty_checkpoint, replacing_checkpoint
from vla.checkpoints.savable import check_savable
from vla.errors import ConfigError
from vla.fast.levels import FormError, check_level, check_plain_options, check_release
from vla.fast.release import ReleasedError, is_released
from vla.paths import expanded
from vla.policies.auto_classes import register_classes
from vla.policies.cacheable import Cacheable
from vla.policies.config import PolicyConfig
from vla.policies.trainer import LossWithoutLabels, refuse_raw_items
from vla.transforms.base import Pipeline
from vla.transforms.normalize import NormalizationMode
from vla.types import Batch, as_device
from vla.weights.formats import BASE_FILE
from vla.weights.source import local_folder

logger = logging.getLogger(__name__)

CAPABILITIES = {
    "text": "generates text (`generate_text`)",
    "adapters": "can be adapted by LoRA (`parts.adapter_presets`)",
    "quantization": "its base can be stored in 4 or 8 bits (`parts.quantizable_linears`)",
    "freezing": "parts of it can be kept as they are (`parts.freezable`)",
    "feature_cache": "what frozen parts make of a frame can be kept (`cacheable`)",
    "backbone": "can begin with another model's weights (`from_backbone`)",
    "activation_checkpointing": "layers can compute their activations again",
    "draws": "several noise draws share one observation in training (`training_draws`)",
}
"""What a policy may leave out, by the names of `Policy.leaves_out`."""


@dataclass
class PolicyOutput(ModelOutput):
    """What a training pass returns; a policy's own output adds what it computes.

    Attributes:
        loss: Scalar.
    """

    loss: torch.Tensor | None = None

    @property
    def metrics(self) -> dict[str, torch.Tensor]:
        """Scalars to report next to the loss, by name; one that a batch says nothing about is left out."""
        return {}

    @property
    def action_error(self) -> torch.Tensor | None:
        """Squared errors behind the action loss, float32 `[b, n, a, m]` (n: noise draws, or 1), or None."""
        return None

    @property
    def action_error_mask(self) -> torch.Tensor | None:
        """Which of them count, bool, broadcast to `action_error`; None: all of them."""
        return None

    @property
    def noise_level(self) -> torch.Tensor | None:
        """Where each draw lies between noise (0) and data (1), `[b, n]`, for objectives with noise."""
        return None


class Policy(PolicyModule):
    """A `transformers` model that maps a batch to a loss and an observation to a chunk of actions.

    A subclass sets `config_class`, builds its modules in `__init__` (ending with `self.post_init()`), and
    defines `forward(**batch) -> PolicyOutput` and `sample_actions`. `forward` takes every tensor that its
    pipeline makes as a keyword, and `generator`, the source of whatever it draws.
    """

    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the Trainer's: the loss is a mean, whatever else `forward` takes
    _supports_sdpa = True

    config: PolicyConfig

    leaves_out: ClassVar[frozenset[str]] = frozenset()
    """Names in `CAPABILITIES` of what this policy does not offer."""
    training_defaults: ClassVar[Mapping[str, Any]] = {}
    """Values of `train` keys where a recipe gives none, by key: `{"learning_rate": 1e-4}`."""
    reads_text: ClassVar[bool] = True
    """Whether its pipeline writes prompts, so that a tokenizer is needed."""
    normalization: ClassVar[Mapping[str, NormalizationMode]] = {"state": "zscore", "actions": "zscore"}
    """How each feature is normalised where a recipe does not say."""
    noise_level_name: ClassVar[str] = "tau"
    """What metrics call the noise level of a draw: `action_loss/tau_0.4_0.6`."""
    sampling_inputs: ClassVar[tuple[str, ...] | None] = None
    """What `sample_actions` takes of the pipeline's tensors and of `host_inputs`; None: all of it."""

    offers: ClassVar[frozenset[str]] = frozenset()
    """Keywords of `sample_actions` for variants of sampling, of `vla.objectives.guidance.VARIANTS`."""

    training_draws: int | None = None
    """Noise draws of each observation in training mode; None: the config's. `train.draws_per_observation`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = measured(cls.__init__)  # type: ignore[method-assign]
        if "forward" in vars(cls):
            cls.forward = LossWithoutLabels(cls.forward)  # type: ignore[method-assign]
        config_class = vars(cls).get("config_class")
        inherited = any(vars(base).get("config_class") is config_class for base in cls.__mro__[1:])
        if (
            getattr(config_class, "model_type", "") and not inherited
        ):  # neither of several policies nor a variant
            register_classes(cls)

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Compute the loss: `forward`, with a word to those who give a dataset's items as they are."""
        refuse_raw_items(inputs)
        return super().__call__(*args, **inputs)

    # -- acting ----------------------------------------------------------------------------------------

    def sample_actions(self, **observation: Any) -> torch.Tensor:
        """Return chunks `[b, a, m]` in model space.

        Args:
            **observation: Tensors that the pipeline makes of an observation, stacked; besides them `noise`
                (`[b, a, m]`, or None) and `generator` (source of randomness, on the policy's device, or a
                sequence of one for each observation: `vla.objectives.noise.standard_normal` takes both).
        """
        raise NotImplementedError(f"{type(self).__name__} does not sample actions.")

    def fast(self, level: str | bool = True, *, highest: str | None = None, **options: Any) -> Any:
        """Return what samples faster: an object whose `sample_actions` takes what the policy's takes.

        It is made of the weights as they are now, and is never saved.

        Args:
            level: A name of `vla.fast.levels.LEVELS`; True: the highest that pays on the policy's device. The
                policy itself is "plain".
            highest: With True: no higher level than this.
            **options: Arguments of `inference_form`.

        Raises:
            ConfigError: There is no such level; or "plain" is to release the plain weights.
            FormError: A level that was named cannot be had. With True, a lower one is used, and the log says
                why.
        """
        wanted, lower_will_do = check_level(level, self.device, highest)
        check_release(wanted, options.get("release_plain", False))
        if is_released(self):
            raise ReleasedError("another sampler")
        if wanted == "plain":
            check_plain_options(options)
            return self
        try:
            return self.inference_form(wanted, lower_will_do, **options)
        except FormError as error:
            if not lower_will_do:
                raise
            logger.warning("Sampling at level 'plain': %s", error)
            return self

    def inference_form(self, level: str, lower_will_do: bool = False, /, **options: Any) -> Any:
        """Return the policy's inference form at a level above "plain", for `fast`.

        Args:
            level: A name of `vla.fast.levels.LEVELS`.
            lower_will_do: Whether it may run at a lower level where this one cannot be had.
            **options: Its own.

        Raises:
            FormError: There is none.
        """
        raise FormError(f"{type(self).__name__} has no inference form: its level is 'plain'.")

    def generate_text(self, **observation: Any) -> torch.Tensor:
        """Return generated token ids `[b, n]` for the observation's tensors."""
        raise NotImplementedError(f"{type(self).__name__} does not generate text.")

    def host_inputs(self, batch: Batch) -> dict[str, Any]:
        """Return plain values that the host reads off a batch, as keywords for the passes over it.

        Called before the batch is copied to the policy's device: lengths, say, which would have to be waited
        for there. `forward`, `sample_actions` and `generate_text` take them, and do without. Where a value is
        an object, its `sizes`, a tuple of integers, tell batches of different cost apart.

        Args:
            batch: Tensors that the pipeline made, stacked, on the host.
        """
        return {}

    def check_pipeline(self, pipeline: Pipeline) -> None:
        """Raise `ConfigError` unless the policy can read what a pipeline makes."""

    # -- training --------------------------------------------------------------------------------------

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the trainable parameters in groups for the optimiser.

        By default matrices and convolution kernels decay; norms, biases, other vectors and embedding tables
        (a tied output head is one) do not. A group may hold `lr_scale`, a factor of the learning rate.
        """
        return decay_groups(self, weight_decay)

    def prefixes_without_gradient(self, trains_text: bool) -> tuple[str, ...]:
        """Return how the names of the parameters begin that no gradient of the loss ever reaches.

        They are not trained: engines differ in whether such weights decay.

        Args:
            trains_text: Whether the text loss is part of the loss.
        """
        return ()

    def cacheable(self) -> Mapping[str, Cacheable]:
        """Return what frozen parts make of a frame and may be kept, by `data.feature_cache_of`."""
        return {}

    # -- measuring -------------------------------------------------------------------------------------

    def example_batch(
        self,
        batch_size: int,
        *,
        cameras: int | None = None,
        text_tokens: int | None = None,
        training: bool = False,
        seed: int = 1,
    ) -> Batch:
        """Return random tensors of the policy's shapes, on its device, to measure and test with.

        Args:
            batch_size: Observations.
            cameras: How many of its cameras are there; None: all.
            text_tokens: Length of the text; None: the longest that the config allows. Without text: ignored.
            training: Whether to add what the loss needs (`actions`).
            seed: Seed of the values.

        A policy that generates text takes `response_tokens` as well: how many of the text's tokens, the last
        ones, are a response, to be learned in training.
        """
        raise NotImplementedError(f"{type(self).__name__} makes no example batch.")

    def timed_parts(self, batch: Batch) -> dict[str, Callable[[], Any]]:
        """Return the parts of sampling that are worth timing by themselves, for an `example_batch`."""
        return {}

    # -- engines ---------------------------------------------------------------------------------------

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Keep only the inputs of layers for the backward pass, which then computes the rest again.

        Args:
            activation_checkpointing_kwargs: For `torch.utils.checkpoint.checkpoint`; always without
                `use_reentrant`, which drops the gradients of layers whose inputs need none.
            every_n_layers: 1 treats every layer of every tower so, 2 every second, counted from the first.
            offload: Hold those inputs in the host's memory.

        Raises:
            ConfigError: The policy leaves it out.
        """
        if "activation_checkpointing" in self.leaves_out:
            raise ConfigError(f"{type(self).__name__} offers no activation checkpointing: leave it out.")
        options = dict(activation_checkpointing_kwargs or {})
        if options.get("use_reentrant"):
            logger.warning(
                "use_reentrant=True would drop gradients, of adapters for one: it is taken as False"
            )
        options["use_reentrant"] = False
        super().activation_checkpointing_enable(options, every_n_layers, offload)
        for module in self.modules():
            if hasattr(module, "checkpoint_every"):  # transformers' count is of its own layers alone
                module.checkpoint_every = every_n_layers  # type: ignore[assignment]

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compile each layer of each tower by itself, in place; parameters keep their names.

        Lengths are symbols from the start, and layers of one size share their graphs: a few graphs in all,
        whatever lengths the texts have.

        Args:
            backend: Backend of `torch.compile`.
        """
        for module in self.modules():
            if type(module).__name__ in (self._no_split_modules or ()):
                module.compile(backend=backend, dynamic=True)

    def compile_stack(self, backend: str = "inductor") -> None:
        """Compile the training pass as few large functions, in place; parameters keep their names.

        Passes in evaluation mode, or without gradients, run as before.

        Args:
            backend: Backend of `torch.compile`.

        Raises:
            ConfigError: The policy's pass is not written so that it can be.
        """
        raise ConfigError(
            f"{type(self).__name__} cannot be compiled as a whole: train.compile=layers compiles each layer."
        )

    # -- checkpoints -----------------------------------------------------------------------------------

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        **others: Any,
    ) -> None:
        """Write weights, config, pipeline, statistics and tokenizer into one folder, whole or not at all.

        Of a policy with an active adapter, the adapter takes the place of weights and config, and the base is
        only named.

        Args:
            save_directory: Folder; made where absent. A checkpoint in it is replaced, other files stay.
            is_main_process: False writes nothing: another process does. Of several processes, only the first
                ever writes.
            state_dict: Tensors to write instead of the policy's own, where they were gathered from several
                processes.
            push_to_hub: Upload it as well, as `push_to_hub` does, to `repo_id` (your account and the folder's
                name where not given).
            max_shard_size: Largest file of weights, bytes or such as "5GB".
            **others: Options of `push_to_hub`, for uploading; those of `transformers` that ask for what is
                done anyway.

        Raises:
            SaveError: The folder is a checkpoint that a training run resumes from, or the base of adapters,
                or the disk is full. Nothing was changed.
            WeightsError: It has an adapter, but its base came from no checkpoint; or it has none and is
                quantised; or its weights, or those of `state_dict`, are not those that the config
                describes, not finite, or of dtypes that could not be opened again.
            ConfigError: An option that does not exist here, or the config contradicts a pipeline.
            StatisticsError: The statistics are of another width than the config says.
        """
        check_only("save_pretrained", SAVING, others)
        check_shard_size(max_shard_size)
        others.pop("save_function", None)  # accelerate's, where weights may not be safetensors
        if unknown := sorted(others.keys() - {"token"}) if not push_to_hub else ():
            raise ConfigError(f"save_pretrained has no {', '.join(unknown)} (without push_to_hub=True).")
        check_storable(self)
        if not self.should_save_on_this_rank(is_main_process):
            return
        save_directory = expanded(save_directory)
        try:
            with leaving_no_empty_checkpoint(save_directory):
                if self.adapter is None:
                    check_savable(self, state_dict)
                    state_dict = None if state_dict is None else dict(state_dict)  # transformers empties it
                with replacing_checkpoint(save_directory) as folder:
                    if self.adapter is not None:
                        write_adapter(self, folder, state_dict)
                    else:
                        super().save_pretrained(folder, state_dict=state_dict, max_shard_size=max_shard_size)
                    self.save_pipelines(folder)
        except SafetensorError as error:  # what becomes of a full disk in there
            raise SaveError(f"Could not write {save_directory}: {error}. Nothing was changed.") from error
        if self.adapter is not None:
            keep_base(self, save_directory)
        if push_to_hub:
            repo_id = others.pop("repo_id", None) or own_repository(save_directory, others.get("token"))
            self.push_to_hub(repo_id, max_shard_size=max_shard_size, **others)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str = "",
        config: Mapping[str, Any] | PolicyConfig | None = None,
        tokenizer: Any = None,
        asset_id: str | None = None,
        quantize: str | None = None,
        base: str | Path | None = None,
        load_weights: bool = True,
        output_loading_info: bool = False,
        **others: Any,
    ) -> Self:
        """Load weights and pipeline from any known format: exactly this policy, or an error that says why.

        Args:
            pretrained_model_name_or_path: Folder, hub id, or short name from `vla info known`. A run's folder
                stands for its newest checkpoint. Where it holds an adapter that was trained here, its base is
                found and loaded first.
            dtype: Dtype of the weights, such as `torch.bfloat16`; None keeps that of most of the stored ones.
            device: Where to put them.
            revision: Branch, tag or commit on the hub.
            token: Hub token, for private and gated repositories.
            cache_dir: Where hub snapshots are kept.
            local_files_only: Take the hub's files from the cache alone.
            force_download: Download what is in the cache already once more.
            subfolder: Where the checkpoint lies inside the folder or repository.
            config: Fields of the config to change, such as `{"action_horizon": 10}`, or a whole config; not
                those that the tensors decide.
            tokenizer: A tokenizer, or its folder or hub id, where the checkpoint brings none.
            asset_id: Which statistics to take where the checkpoint holds those of several robots.
            quantize: "4bit" or "8bit" stores the linear layers so (bitsandbytes), to act or to train an
                adapter; `dtype` is then that of all the rest, and of the products.
            base: Folder, hub id or short name of an adapter's base, where it is no longer where the adapter
                says; it must have the fingerprint that it had in training.
            load_weights: False checks everything, but leaves the weights without values and without memory:
                for a process that another one sends them to. Not of an adapter.
            output_loading_info: Return the policy and a dictionary of what did not fit, as `transformers`
                does; its lists are empty, since anything else is an error.
            **others: Fields of the config to change; and keywords of `transformers` (`torch_dtype`,
                `device_map`, `attn_implementation`, ...), see docs/with_transformers.md.

        Raises:
            WeightsError: Not reachable, not this policy, or a tensor is missing, superfluous, of the wrong
                shape or dtype, or damaged. Nothing is loaded partially.
            StatisticsError: The statistics are damaged, or several and none was chosen.
            ConfigError: `config` does not fit, a keyword asks for what is not done here, or the device is not
                there.
            SaveError: What was saved into the folder last cannot be moved to its place.
        """
        where = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        fetched = {"force_download": force_download, "subfolder": subfolder, **where}
        check_types(
            revision=revision,
            config=config,
            base=base,
            output_loading_info=output_loading_info,
            **fetched,
        )
        adapter = (others.pop("adapter_kwargs", None) or {}).get("_adapter_model_path")  # AutoModel's
        given = {"dtype": dtype, "device": device, "quantize": quantize}
        options = {**merged(given, translate(others)), "tokenizer": tokenizer}
        options["device"] = as_device(options.get("device"))
        check_attention(config)
        config = config_with(config, others, cls)
        source = adapter or pretrained_model_name_or_path
        folder = local_folder(source, revision=None if adapter else revision, **fetched)
        finish_save(folder)
        expected = None if cls is Policy else cls
        if (folder / BASE_FILE).is_file():
            _check_unchanged(folder, config if adapter is None else None, asset_id)
            policy: Any = load_with_base(folder, expected, base=base, **options, **where)
            policy.loaded_from = policy.loaded_from or LoadedFrom.of_folder(folder)
        else:
            if base is not None:
                raise ConfigError(
                    f"{folder} holds a whole policy, not an adapter, so base={base} means nothing."
                )
            options |= {"kind": (quantize := options.pop("quantize")), "config": config, "asset_id": asset_id}
            reads = load_weights or quantize is not None
            policy = load_quantized(folder, expected, load_weights=reads, **options)
        loaded: Any = (policy.eval(), nothing_missing()) if output_loading_info else policy.eval()
        return loaded

    @classmethod
    def from_backbone(
        cls, name_or_path: str | Path, config: Mapping[str, Any] | None = None, **options: Any
    ) -> Self:
        """Return a policy that begins with the weights of another library's model, the rest of it fresh.

        Args:
            name_or_path: Folder or hub id of the model.
            config: Fields of the config that the model does not decide.
            **options: dtype, device, revision, token, load_weights (see `from_pretrained`), ...

        Raises:
            ConfigError: This policy does not begin with another model's weights.
        """
        raise ConfigError(f"{cls.__name__} does not begin with the weights of another model.")

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Upload weights, pipeline and model card as one commit; returns the address.

        Args:
            repo_id: `"owner/name"`.
            **options: See `vla.checkpoints.hub.push.push`: private, token, revision, max_shard_size, run, ...
        """
        check_only("push_to_hub", UPLOADING, options)
        return push(self, repo_id, **options)


def _check_unchanged(folder: Path, config: Any, asset_id: str | None) -> None:
    """Raise `ConfigError` where an adapter is asked for another config or other statistics."""
    if not config and asset_id is None:
        return
    given = f"asset_id={asset_id}" if asset_id is not None else "fields of the config"
    raise ConfigError(
        f"{folder} holds an adapter, whose config and statistics are those of its training: it takes no "
        f"{given}. `vla merge {folder} DST` writes a whole checkpoint, which does, and which training can "
        "start from (policy.pretrained=DST); --resume continues the adapter's own run."
    )


def check_keywords(method: Callable[..., Any], names: Iterable[str], policy: type) -> None:
    """Raise `ConfigError` unless a policy's method takes every tensor that its pipeline makes.

    Args:
        method: `forward` or `sample_actions`.
        names: Names of the tensors.
        policy: Whose method it is.
    """
    # As it was written, not as the class shows it to the Trainer (`LossWithoutLabels`).
    parameters = inspect.signature(inspect.unwrap(method)).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    unknown = sorted(set(names) - {parameter.name for parameter in parameters})
    if unknown:
        raise ConfigError(
            f"{policy.__name__}.{method.__name__} does not take {', '.join(unknown)}, which its pipeline "
            "makes. Add it to the arguments, or take **unread; `sampling_inputs` chooses for sample_actions."
        )


def accepted(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values that a function takes by keyword."""
    parameters = inspect.signature(function).parameters
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    return {name: value for name, value in values.items() if takes_all or name in parameters}


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into one group that decays and one that does not.

    Matrices and convolution kernels decay. Norms, biases and other vectors do not, nor do embedding tables
    (a tied output head is an embedding table).
    """
    # By name: policies have tables of their own that are not an nn.Embedding (a tied one is the output head).
    embeddings = [module for module in model.modules() if type(module).__name__.endswith("Embedding")]
    tables = {id(table) for module in embeddings for table in module.parameters(recurse=False)}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decays = [parameter.ndim >= 2 and id(parameter) not in tables for parameter in trainable]
    return [
        {"params": [p for p, d in zip(trainable, decays, strict=True) if d], "weight_decay": weight_decay},
        {"params": [p for p, d in zip(trainable, decays, strict=True) if not d], "weight_decay": 0.0},
    ]
