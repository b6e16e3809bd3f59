"""The content of a checkpoint as a module: weights, config and pipelines, but not what they compute.

`vla.policies.base.Policy` builds on it; this room and `vla.adapters` know no more than this of a policy.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import PreTrainedModel

from vla.checkpoints.parts import Parts
from vla.errors import ConfigError
from vla.transforms.base import Pipeline
from vla.transforms.named_pipelines import write_pipelines

_SNAPSHOT = re.compile(r"/models--(.+?)--(.+)/snapshots/([0-9a-f]{40})$")


@dataclass(frozen=True)
class LoadedFrom:
    """The checkpoint that a policy's weights came from.

    Attributes:
        name: Hub id, or absolute path of a folder.
        revision: Commit on the hub; None for a folder.
        config: Fields of the config that were given when loading.
        asset_id: Robot whose statistics were taken.
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


PolicyConfig = Any
"""A policy's config; files of other libraries expect of it cameras, padded widths, horizon, ..."""


class PolicyModule(PreTrainedModel):
    """A `transformers` model that carries its pipelines, and knows where its weights came from."""

    parts: ClassVar[Parts] = Parts()
    """Its parts, and what may be done to each."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.pipelines: dict[str | None, Pipeline] = {}
        """Robot units to model space and back: under None for a policy of one robot, under their names for
        a policy that was trained on several; empty until fitted to a dataset."""
        self.tokenizer: Any = None
        """Without a pipeline: the tokenizer of the checkpoint's prompts, for fine-tuning."""
        self.loaded_from: LoadedFrom | None = None
        """The checkpoint that the weights came from; None for fresh weights."""
        self.adapter: str | None = None
        """Name of the active adapter; None is the base alone. See `vla.adapters.lora`."""
        self.base_fingerprint: str | None = None
        """Fingerprint of the base weights of the adapters, before they were quantised."""
        self.quantized: str | None = None
        """Quantisation of the base's linear layers: "4bit", "8bit", or None.
        See `vla.adapters.quantize`."""
        self.trained_on: dict[str, str | None] = {}
        """Value of `quantized` in each adapter's training, by name."""
        self.adapter_pipelines: dict[str | None, dict[str | None, Pipeline]] = {}
        """Every adapter's `pipelines`; the base's under None."""

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:  # type: ignore[override]
        """Names of `state_dict` that no checkpoint of this policy holds; with an adapter, all but its own.

        `transformers` warns of others that are missing when a checkpoint is loaded into a policy.
        """
        never: set[str] = vars(self).get("_never_saved", set())
        if vars(self).get("adapter") is None:
            return never
        return never | {name for name in self.state_dict() if f".{self.adapter}." not in name}

    @_keys_to_ignore_on_save.setter
    def _keys_to_ignore_on_save(self, names: set[str] | list[str] | None) -> None:
        vars(self)["_never_saved"] = set(names or ())

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline of a policy of one robot; None until fitted to a dataset, and for several robots.

        Setting it makes the policy one of that robot alone.
        """
        return self.pipelines.get(None)

    @pipeline.setter
    def pipeline(self, pipeline: Pipeline | None) -> None:
        self.pipelines = {} if pipeline is None else {None: pipeline}

    @property
    def pipeline_names(self) -> tuple[str, ...]:
        """Names of the robots of a policy that was trained on several; none for all others."""
        return tuple(name for name in self.pipelines if name is not None)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Is not for policies.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "A policy's token table has as many rows as its weights: vocab_size in the config of a fresh "
            "policy says how many. The table of a pretrained one is not resized."
        )

    def save_description(self, folder: Path) -> None:
        """Write everything but the weights into a folder that exists: config, pipelines, tokenizer."""
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)
        self.save_pipelines(folder)

    def save_pipelines(self, folder: Path) -> None:
        """Write pipelines, statistics and tokenizer into a folder that exists."""
        write_pipelines(self.pipelines, folder)
