"""What every policy offers: a loss, samples, and one folder that holds all it needs to meet a robot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError

from vla.adapters.files import load_with_base, write_adapter
from vla.adapters.quantize import load_quantized
from vla.atomic import SaveError, atomic_folder
from vla.checkpoints.hub.push import push
from vla.checkpoints.module import LoadedFrom, PolicyModule
from vla.errors import ConfigError, WeightsError
from vla.nn.gemma import LayerStack
from vla.weights.formats import BASE_FILE
from vla.weights.source import local_folder


class Policy(PolicyModule):
    """A `transformers` model that carries its pipeline.

    Subclasses define `forward(**batch)` with `.loss`, `sample_actions`, and their config class; their
    folder's `pipeline.py` defines `make_pipeline`.
    """

    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

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
                    write_adapter(self, folder, kwargs.get("state_dict"))
                else:
                    super().save_pretrained(folder, **kwargs)
                self.save_pipelines(folder)
        except SafetensorError as error:  # what becomes of a full disk in there
            raise SaveError(f"Could not write {save_directory}: {error}. Nothing was changed.") from error

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
        where = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        folder = local_folder(pretrained_model_name_or_path, revision=revision, **where)
        expected = None if cls is Policy else cls
        policy: Any
        if (folder / BASE_FILE).is_file():
            if config or asset_id is not None:
                raise ConfigError(
                    f"{folder} holds an adapter: config and statistics are those of its training."
                )
            policy = load_with_base(
                folder, expected, dtype=dtype, device=device, tokenizer=tokenizer, quantize=quantize, **where
            )
            policy.loaded_from = policy.loaded_from or LoadedFrom.of_folder(folder)
            return policy.eval()
        return load_quantized(  # type: ignore[return-value]
            folder,
            expected,
            quantize,
            dtype=dtype,
            device=device,
            config=config,
            tokenizer=tokenizer,
            asset_id=asset_id,
            fill=fill or quantize is not None,
        )

    @classmethod
    def from_backbone(
        cls, name_or_path: str | Path, config: Mapping[str, Any] | None = None, **options: Any
    ) -> Self:
        """Return a policy that begins with the weights of another library's model, the rest of it fresh.

        Args:
            name_or_path: Folder or hub id of the model.
            config: Fields of the config that the model does not decide.
            **options: dtype, device, revision, token, ...

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
        return push(self, repo_id, **options)
