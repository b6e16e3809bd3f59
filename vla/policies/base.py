"""What every policy offers: a loss, samples, and one folder that holds all it needs to meet a robot."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from vla.atomic import SaveError, atomic_folder
from vla.errors import WeightsError
from vla.nn.gemma import LayerStack
from vla.transforms.base import Pipeline
from vla.transforms.named_pipelines import write_pipelines
from vla.weights.source import local_folder

_SNAPSHOT = re.compile(r"/models--(.+?)--(.+)/snapshots/([0-9a-f]{40})$")


@dataclass(frozen=True)
class LoadedFrom:
    """The checkpoint that a policy's weights came from.

    Attributes:
        name: Hub id, or absolute path of a folder.
        revision: Commit on the hub; None for a folder.
        config: Fields of the config that were given beside it.
        asset_id: Whose statistics were taken.
    """

    name: str
    revision: str | None
    config: dict[str, Any]
    asset_id: str | None = None

    @classmethod
    def of_folder(
        cls, folder: Path, config: Mapping[str, Any] | None = None, asset_id: str | None = None
    ) -> Self:
        """Return the hub id and commit of a folder in the hub's cache, or the path of any other."""
        folder = folder.resolve()
        snapshot = _SNAPSHOT.search(folder.as_posix())
        name, revision = (f"{snapshot[1]}/{snapshot[2]}", snapshot[3]) if snapshot else (str(folder), None)
        return cls(name, revision, dict(config or {}), asset_id)


class Policy(PreTrainedModel):
    """A `transformers` model that carries its pipeline.

    Subclasses define `forward(**batch)` with `.loss`, `sample_actions`, and their config class; their
    folder's `pipeline.py` defines `make_pipeline`.
    """

    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.pipeline: Pipeline | None = None
        """Robot units to model space and back; None for weights that have met no dataset yet."""
        self.pipelines: dict[str, Pipeline] = {}
        """Where it was trained on several robots at once: each one's, by name, and no `pipeline`."""
        self.tokenizer: Any = None
        """Where there is no pipeline: what the checkpoint's prompts were tokenised with, for fine-tuning."""
        self.loaded_from: LoadedFrom | None = None
        """Which checkpoint the weights came from; None where they are fresh."""
        self.adapter: str | None = None
        """Name of the active adapter; None is the base alone. See `vla.policies.adapters`."""
        self.base_fingerprint: str | None = None
        """Of the weights that the adapters were put beside, before they were quantised."""
        self.quantized: str | None = None
        """In how many bits the linear maps of the base are stored: "4bit", "8bit", or None for all of them.
        See `vla.policies.quantize`."""
        self.trained_on: dict[str, str | None] = {}
        """What `quantized` was where each adapter was trained, by name."""
        self.adapter_pipelines: dict[str | None, tuple[Pipeline | None, dict[str, Pipeline]]] = {}
        """Every adapter's `pipeline` and `pipelines`, and under None the base's."""

    def sample_actions(self, **observation: Any) -> torch.Tensor:
        """Return chunks `[b, a, m]` in model space for the observation's tensors."""
        raise NotImplementedError(f"{type(self).__name__} does not sample actions.")

    def generate_text(self, **observation: Any) -> torch.Tensor:
        """Return generated token ids `[b, n]` for the observation's tensors."""
        raise NotImplementedError(f"{type(self).__name__} does not generate text.")

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Keep only the inputs of layers for the backward pass, which then computes the rest again.

        Args:
            activation_checkpointing_kwargs: For `torch.utils.checkpoint.checkpoint`.
            every_n_layers: 1 treats every layer of every tower so, 2 every second, counted from the first.
            offload: Hold those inputs in the host's memory.
        """
        super().activation_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)
        for module in self.modules():
            if isinstance(module, LayerStack):  # transformers' count is of its own layers, SigLIP's, alone
                module.checkpoint_every = every_n_layers

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compile each layer of each tower by itself, in place; parameters keep their names.

        Lengths are symbols from the start, and layers of one size share their graphs: a few graphs in all,
        whatever lengths the texts have.

        Args:
            backend: Of `torch.compile`.
        """
        for module in self.modules():
            if type(module).__name__ in (self._no_split_modules or ()):
                module.compile(backend=backend, dynamic=True)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write weights, config, pipeline, statistics and tokenizer into one folder, whole or not at all.

        Of a policy with an active adapter, the adapter takes the place of weights and config, and the base is
        only named.

        Args:
            save_directory: Must not exist, or be empty: nothing is overwritten.
            **kwargs: `max_shard_size` and the like, for `transformers`.

        Raises:
            SaveError: The folder is not empty, or the disk is full.
            WeightsError: It has an adapter, but its base came from no checkpoint; or it has none and is
                quantised.
        """
        if kwargs.pop("push_to_hub", False):
            raise WeightsError("Save first, then call push_to_hub(repo_id).")
        if self.quantized is not None and self.adapter is None:
            raise WeightsError(
                f"This policy's weights are stored in {self.quantized}, which no checkpoint holds: they lie "
                "where they were loaded from, in full, and only an adapter beside them can be saved."
            )
        try:
            with atomic_folder(save_directory) as folder:
                if self.adapter is not None:
                    from vla.policies.adapter_files import write_adapter

                    write_adapter(self, folder, kwargs.get("state_dict"))
                else:
                    super().save_pretrained(folder, **kwargs)
                self._save_pipelines(folder)
        except SafetensorError as error:  # what becomes of a full disk in there
            raise SaveError(f"Could not write {save_directory}: {error}. Nothing was changed.") from error

    def save_description(self, folder: Path) -> None:
        """Write everything but the weights into a folder that exists: config, pipeline, tokenizer."""
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)
        self._save_pipelines(folder)

    def _save_pipelines(self, folder: Path) -> None:
        if self.pipeline is not None:
            self.pipeline.save(folder)
        write_pipelines(self.pipelines, folder)

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
        config: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
        asset_id: str | None = None,
        quantize: str | None = None,
        fill: bool = True,
    ) -> Self:
        """Load weights and pipeline from any known format: exactly this policy, or an error that says why.

        Args:
            pretrained_model_name_or_path: Folder, hub id, or short name from `vla info known`. Where it holds
                an adapter that was trained here, its base is found and loaded first.
            dtype: Of the weights, such as `torch.bfloat16`; None keeps that of most of the stored ones.
            device: Where to put them.
            revision: Branch, tag or commit on the hub.
            token: Hub token, for private and gated repositories.
            cache_dir: Where hub snapshots are kept.
            local_files_only: Take the hub's files from the cache alone.
            config: Fields of the config to change, such as `{"action_horizon": 10}`; not those that the
                tensors decide.
            tokenizer: A tokenizer, or its folder or hub id, where the checkpoint brings none.
            asset_id: Which statistics to take where the checkpoint holds those of several robots.
            quantize: "4bit" or "8bit" stores the layers' linear maps so (bitsandbytes), to act or to train an
                adapter; `dtype` is then that of all the rest, and of the products.
            fill: False checks everything, but leaves the weights without values and without memory: for a
                process that another one sends them to. Not of an adapter.

        Raises:
            WeightsError: Not reachable, not this policy, or a tensor is missing, superfluous, of the wrong
                shape or dtype, or damaged. Nothing is loaded partially.
            StatisticsError: The statistics are damaged, or several and none was chosen.
            ConfigError: `config` does not fit.
        """
        from vla.policies.loading import load_policy

        folder = local_folder(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        expected = None if cls is Policy else cls
        policy: Any = load_policy(
            folder,
            expected,
            dtype=dtype,
            device=device,
            config=config,
            tokenizer=tokenizer,
            asset_id=asset_id,
            quantize=quantize,
            hub={"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only},
            fill=fill,
        )
        if policy.loaded_from is None:
            policy.loaded_from = LoadedFrom.of_folder(folder, config, asset_id)
        return policy

    @classmethod
    def from_paligemma(
        cls, name_or_path: str | Path, config: Mapping[str, Any] | None = None, **options: Any
    ) -> Self:
        """Return a policy whose vision-language model is a PaliGemma's and whose expert is fresh.

        Args:
            name_or_path: Folder or hub id, `google/paligemma-3b-pt-224` for one.
            config: Fields of the config that the PaliGemma does not decide.
            **options: See `vla.policies.initialise.from_paligemma`: dtype, device, revision, token.
        """
        from vla.policies.initialise import from_paligemma

        return from_paligemma(cls, name_or_path, dict(config or {}), **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Upload weights, pipeline and model card as one commit; returns the address.

        Args:
            repo_id: `"owner/name"`.
            **options: See `vla.policies.hub.push`: private, token, revision, max_shard_size, run, ...
        """
        from vla.policies.hub import push

        return push(self, repo_id, **options)
