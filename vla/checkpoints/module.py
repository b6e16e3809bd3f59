"""What a checkpoint holds, as a module: weights, config and pipelines, and nothing of what they compute.

`vla.policies.base.Policy` stands on it; this room and `vla.adapters` know policies as no more than this.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import PreTrainedModel

from vla.checkpoints.parts import Parts
from vla.transforms.base import Pipeline
from vla.transforms.named_pipelines import write_pipelines

_SNAPSHOT = re.compile(r"/models--(.+?)--(.+)/snapshots/([0-9a-f]{40})$")


@dataclass(frozen=True)
class LoadedFrom:
    """The checkpoint that a policy's weights came from.

    Attributes:
        name: Hub id, or absolute path of a folder.
        revision: Commit on the hub; None for a folder.
        config: Fields of the config that were given next to it.
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


PolicyConfig = Any
"""A policy's config. Other libraries' files say what it must have: cameras, padded widths, horizon, ..."""


class PolicyModule(PreTrainedModel):
    """A `transformers` model that carries its pipelines, and knows where its weights came from."""

    parts: ClassVar[Parts] = Parts()
    """What it is made of, and what may be done to each part."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.pipelines: dict[str | None, Pipeline] = {}
        """Robot units to model space and back. Under None that of a policy of one robot; under their names
        those of a policy that was trained on several at once; empty until it was fitted to a dataset."""
        self.tokenizer: Any = None
        """Where there is no pipeline: what the checkpoint's prompts were tokenised with, for fine-tuning."""
        self.loaded_from: LoadedFrom | None = None
        """Which checkpoint the weights came from; None where they are fresh."""
        self.adapter: str | None = None
        """Name of the active adapter; None is the base alone. See `vla.adapters.lora`."""
        self.base_fingerprint: str | None = None
        """Fingerprint of the base weights of the adapters, before they were quantised."""
        self.quantized: str | None = None
        """In how many bits the linear layers of the base are stored: "4bit", "8bit", or None for all of them.
        See `vla.adapters.quantize`."""
        self.trained_on: dict[str, str | None] = {}
        """What `quantized` was where each adapter was trained, by name."""
        self.adapter_pipelines: dict[str | None, dict[str | None, Pipeline]] = {}
        """Every adapter's `pipelines`, and under None the base's."""

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline of a policy of one robot; None where it has met none, or several.

        Setting it makes the policy one of that robot alone.
        """
        return self.pipelines.get(None)

    @pipeline.setter
    def pipeline(self, pipeline: Pipeline | None) -> None:
        self.pipelines = {} if pipeline is None else {None: pipeline}

    @property
    def pipeline_names(self) -> tuple[str, ...]:
        """Names of the robots of a policy that was trained on several at once; none for all others."""
        return tuple(name for name in self.pipelines if name is not None)

    def save_description(self, folder: Path) -> None:
        """Write everything but the weights into a folder that exists: config, pipelines, tokenizer."""
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)
        self.save_pipelines(folder)

    def save_pipelines(self, folder: Path) -> None:
        """Write pipelines, statistics and tokenizer into a folder that exists."""
        write_pipelines(self.pipelines, folder)
