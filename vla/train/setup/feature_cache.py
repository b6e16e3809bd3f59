"""What frozen parts of a policy make of every frame, computed once and kept on disk.

    vision    what the vision tower makes of the frame's images
    prefix    the keys and values of every layer that the expert reads: all of images and prompt

The folder `<root>/<key>/` is called by a hash of all that decides its numbers: the weights, the frames, the
cameras, what happens to an image on its way to the tower, the precision; for the prefix also every token of
every prompt. Whatever changes makes a new folder; none is ever wrong. Training then reads no video and never
runs those parts.
"""

import hashlib
import json
import logging
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from vla.atomic import SaveError, atomic_folder, one_at_a_time
from vla.data.dataset import LeRobotDataset
from vla.data.sample import to_canonical
from vla.errors import ConfigError
from vla.policies.base import Policy
from vla.train.setup.feature_store import FeatureStore, FrameWriter
from vla.transforms.base import Pipeline, Transform
from vla.transforms.cameras import RenameCameras, RotateImages
from vla.transforms.images import AugmentImages, ResizeImages
from vla.transforms.prompt import TokenizePrompt
from vla.types import Batch, Sample

logger = logging.getLogger(__name__)

_IMAGE_TRANSFORMS: tuple[type[Transform], ...] = (RotateImages, RenameCameras, AugmentImages, ResizeImages)
_BATCH = 8
_FORM = 2  # of the files


@dataclass(frozen=True)
class FrameSource:
    """Where features come from.

    Attributes:
        policy: Its config and weights.
        pipeline: The policy's for these datasets.
        datasets: Parts of one dataset (training and held-out episodes).
        cameras: Camera slot -> dataset key.
    """

    policy: Policy
    pipeline: Pipeline
    datasets: Sequence[LeRobotDataset]
    cameras: Mapping[str, str]

    @property
    def config(self) -> Any:
        """The policy's."""
        return self.policy.config

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def samples(self, pipeline: Pipeline, cameras: Mapping[str, str]) -> Iterator[tuple[int, Sample]]:
        """Yield every frame's global number, and what a pipeline makes of it with the given cameras."""
        for dataset in self.datasets:
            opened = dataset if cameras else dataset.without_images()
            for row in range(len(opened)):
                item = opened[row]
                sample = to_canonical(item, cameras, dataset.state_key, dataset.action_key)
                yield int(item["index"]), pipeline.forward(sample)


class Kind(ABC):
    """What is kept of a frame, as rows of one shape."""

    frozen: ClassVar[str]
    """What must not be trained, and how the recipe says so."""
    covers: ClassVar[tuple[type[Transform], ...]]
    """Transforms whose work is in the features, so that training leaves them out."""

    @abstractmethod
    def parts(self, model: Any) -> list[nn.Module]:
        """Return the modules that make the features."""

    @abstractmethod
    def sizes(self, config: Any) -> dict[str, Any]:
        """Return what of the policy's config decides the features next to the shapes of the weights."""

    @abstractmethod
    def row(self, config: Any) -> tuple[int, ...]:
        """Return the shape of a row."""

    @abstractmethod
    def makers(self, pipeline: Pipeline) -> Pipeline:
        """Return the transforms that make what the parts read."""

    @abstractmethod
    def survey(self, source: FrameSource) -> tuple[int, str]:
        """Return how many rows all frames have, and a hash of what else decides them; opens no image.

        Raises:
            ConfigError: Features of this kind would be wrong, or not all that training needs.
        """

    @abstractmethod
    def look(self, model: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Return the rows of every frame of a batch."""

    @abstractmethod
    def tensors(self, rows: torch.Tensor, kept: FeatureStore, longest: int) -> Batch:
        """Return what the policy's `forward` takes in the place of images (and text).

        Args:
            rows: Of a frame.
            kept: Where they are from.
            longest: The most rows of any frame that may share a batch with it.
        """


class VisionFeatures(Kind):
    """The vision tower's features: a row per image, `[p, d]`."""

    frozen = "vision tower: policy.freeze=vision (or vlm)"
    covers = _IMAGE_TRANSFORMS

    def parts(self, model: Any) -> list[nn.Module]:
        """Return the tower."""
        return [model.vision_tower]

    def sizes(self, config: Any) -> dict[str, Any]:
        """Return the tower's."""
        return {"vision": config.siglip}

    def row(self, config: Any) -> tuple[int, ...]:
        """Return `(p, d)`."""
        return config.tokens_per_image, config.siglip["hidden_size"]

    def makers(self, pipeline: Pipeline) -> Pipeline:
        """Return those that touch images."""
        return Pipeline([one for one in pipeline.transforms if isinstance(one, self.covers)])

    def survey(self, source: FrameSource) -> tuple[int, str]:
        """Return a row per camera and frame; nothing else decides."""
        if not source.cameras:
            raise ConfigError("data.feature_cache keeps what is seen, but there is no camera: leave it out.")
        return len(source) * len(source.cameras), ""

    def look(self, model: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Return the features `[cameras, p, d]` of every frame."""
        mask = batch["pixel_mask"]
        return model.look(batch["pixel_values"][mask]).split(mask.sum(1).tolist())

    def tensors(self, rows: torch.Tensor, kept: FeatureStore, longest: int) -> Batch:
        """Return `pixel_values` `[v, p, d]` and `pixel_mask` `[v]`."""
        present = torch.tensor(kept.about["present"])
        features = rows.new_zeros(len(present), *rows.shape[1:])
        features[present] = rows
        return {"pixel_values": features, "pixel_mask": present}


class PrefixCache(Kind):
    """The keys and values that the expert reads: a row per token of images and prompt, `[n, 2, k, e]`."""

    frozen = "vision-language model, without an adapter in it: policy.freeze=vlm"
    covers = (*_IMAGE_TRANSFORMS, TokenizePrompt)

    def parts(self, model: Any) -> list[nn.Module]:
        """Return the whole vision-language model."""
        return [model.vision_tower, model.multi_modal_projector, model.language_model]

    def sizes(self, config: Any) -> dict[str, Any]:
        """Return those of tower and language model."""
        heads = {name: getattr(config, name) for name in ("depth", "num_heads", "num_kv_heads", "head_dim")}
        return {"vision": config.siglip, "vlm": config.vlm, **heads}

    def row(self, config: Any) -> tuple[int, ...]:
        """Return `(n, 2, k, e)`."""
        return config.depth, 2, config.num_kv_heads, config.head_dim

    def makers(self, pipeline: Pipeline) -> Pipeline:
        """Return all: a prompt may hold the normalised state."""
        return pipeline

    def survey(self, source: FrameSource) -> tuple[int, str]:
        """Return a row per token, and a hash of the text tokens of every frame."""
        if source.pipeline.find(TokenizePrompt).response:
            raise ConfigError(
                "data.feature_cache_of=prefix keeps what the actions read, and text is learned from what it "
                "leaves out: it needs data.response_key=null."
            )
        digest, tokens = hashlib.sha256(), len(source) * len(source.cameras) * source.config.tokens_per_image
        for frame, sample in source.samples(_without(source.pipeline, _IMAGE_TRANSFORMS), {}):
            ids = sample["input_ids"][sample["attention_mask"].bool()]
            digest.update(np.array([frame, len(ids), *ids.tolist()], dtype=np.int64).tobytes())
            tokens += len(ids)
        return tokens, digest.hexdigest()

    def look(self, model: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Return the tokens' keys and values `[s, n, 2, k, e]` of every frame, without padding."""
        names = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")
        keys_values, visible = model.encode_prefix(*[batch[name] for name in names]).cache.pack()
        return [row[real] for row, real in zip(keys_values, visible, strict=True)]

    def tensors(self, rows: torch.Tensor, kept: FeatureStore, longest: int) -> Batch:
        """Return `prefix_keys_values` `[s, n, 2, k, e]` and `prefix_mask` `[s]`, padded alike."""
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        return {"prefix_keys_values": padded, "prefix_mask": torch.arange(longest) < len(rows)}


KINDS: dict[str, Kind] = {"vision": VisionFeatures(), "prefix": PrefixCache()}


@dataclass(frozen=True)
class FeatureCache:
    """Features on disk; it can be sent to a loader's worker processes.

    Attributes:
        kind: What they are.
        kept: Where they are.
        longest: The most rows of any frame that may share a batch with theirs.
    """

    kind: Kind
    kept: FeatureStore
    longest: int

    def read(self, frame: int) -> Batch:
        """Return what the policy takes in the place of a frame, by its global number."""
        return self.kind.tensors(self.kept.read(frame), self.kept, self.longest)

    def remaining(self, pipeline: Pipeline) -> Pipeline:
        """Return the transforms that training still needs."""
        return _without(pipeline, self.kind.covers)


def cached_features(
    root: Path | str,
    policy: Policy,
    datasets: Sequence[LeRobotDataset],
    cameras: Mapping[str, str],
    *,
    precision: str,
    device: torch.device | str = "cpu",
    of: str = "vision",
    pipeline: Pipeline | None = None,
) -> FeatureCache:
    """Return the features of all frames of some datasets, from disk or, the first time, computed.

    Where several processes want the same, one computes and the others wait for it.

    Args:
        root: Folder of all keys.
        policy: What makes the features must be frozen, and its images not augmented.
        datasets: Parts of one dataset (training and held-out episodes).
        cameras: Camera slot -> dataset key.
        precision: "bf16" or "no", as in training.
        device: Where to compute.
        of: A name in `KINDS`.
        pipeline: The policy's for these datasets; its `pipeline` where not given.

    Raises:
        ConfigError: What makes the features is trained, the images are augmented, or text is trained that
            the features do not hold.
        SaveError: The disk is too small, or full; nothing is left behind.
    """
    pipeline = policy.pipeline if pipeline is None else pipeline
    assert pipeline is not None
    kind, source = KINDS[of], FrameSource(policy, pipeline, datasets, cameras)
    parts = kind.parts(policy.model)
    if any(parameter.requires_grad for part in parts for parameter in part.parameters()):
        raise ConfigError(f"data.feature_cache needs a frozen {kind.frozen}.")
    if source.pipeline.find(AugmentImages) is not None:
        raise ConfigError("data.feature_cache keeps one view of every frame: it needs data.augment=false.")
    rows, decided = kind.survey(source)
    folder = Path(root) / _key(kind, source, decided, precision)
    with one_at_a_time(folder):
        if not folder.is_dir():
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            size = rows * math.prod(kind.row(source.config)) * dtype.itemsize
            logger.info(
                "computing the %s features of %d frames into %s: %.3g GB", of, len(source), folder, size / 1e9
            )
            _check_space(folder.parent, size)
            try:
                with atomic_folder(folder) as made:
                    _compute(made, kind, source, dtype, torch.device(device))
            except SaveError:
                if not folder.is_dir():  # else, without locks, another process was quicker
                    raise
    kept = FeatureStore(folder)
    return FeatureCache(kind, kept, kept.longest)


def padded_alike(caches: Sequence[FeatureCache]) -> list[FeatureCache]:
    """Return caches whose frames may share a batch: padded to the longest of all."""
    longest = max((cache.longest for cache in caches), default=0)
    return [replace(cache, longest=longest) for cache in caches]


def _without(pipeline: Pipeline, kinds: tuple[type[Transform], ...]) -> Pipeline:
    return Pipeline([one for one in pipeline.transforms if not isinstance(one, kinds)])


def _key(kind: Kind, source: FrameSource, decided: str, precision: str) -> str:
    digest = hashlib.sha256()
    for part in kind.parts(source.policy.model):
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    look = [one for one in source.pipeline.transforms if isinstance(one, _IMAGE_TRANSFORMS)]
    about = {
        "form": _FORM,
        "kind": type(kind).__name__,
        "sizes": kind.sizes(source.config),
        "datasets": sorted(dataset.fingerprint for dataset in source.datasets),
        "cameras": dict(sorted(source.cameras.items())),
        "transforms": [{"type": one.name, **one.to_json()} for one in look],
        "decided": decided,
        "precision": precision,
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def _check_space(root: Path, size: int) -> None:
    free = shutil.disk_usage(root).free
    if size > free:
        raise SaveError(
            f"The features take {size / 1e9:.3g} GB, but {root} has {free / 1e9:.3g} GB free: choose a "
            "folder on another disk, or fewer episodes; feature_cache_of=vision is smaller than prefix."
        )


@torch.no_grad()
def _compute(folder: Path, kind: Kind, source: FrameSource, dtype: torch.dtype, device: torch.device) -> None:
    model: Any = source.policy.model
    parts = kind.parts(model)
    for part in parts:
        part.to(device).eval()
    frames = 1 + max(int(dataset.low_dim("index").max()) for dataset in source.datasets)
    bar = {"console": Console(stderr=True), "disable": not Console(stderr=True).is_terminal}
    every = source.samples(kind.makers(source.pipeline), source.cameras)
    with FrameWriter(folder, frames, kind.row(source.config), dtype) as writer:
        progress = track(every, "features", total=len(source), **bar)
        while chunk := list(islice(progress, _BATCH)):
            batch = {
                name: torch.stack([sample[name] for _, sample in chunk]).to(device)
                for name, value in chunk[0][1].items()
                if isinstance(value, torch.Tensor)
            }
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                seen = kind.look(model, batch)
            for (frame, _), rows in zip(chunk, seen, strict=True):
                writer.append(frame, rows)
            writer.about["present"] = chunk[0][1]["pixel_mask"].tolist()
    for part in parts:
        part.train(source.policy.training)
