"""What training can keep of pi-0's family where parts of it are frozen.

vision    what the vision tower makes of the frame's images
prefix    the keys and values of every layer that the expert reads: all of images and prompt
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from vla.errors import ConfigError
from vla.nn.attention import KeyValueCache
from vla.policies.cacheable import Cacheable, Frames
from vla.transforms.base import Pipeline, Transform
from vla.transforms.cameras import RenameCameras, RotateImages
from vla.transforms.images import AugmentImages, ResizeImages
from vla.transforms.prompt import TokenizePrompt
from vla.types import Batch, Sample

_IMAGE_TRANSFORMS: tuple[type[Transform], ...] = (RotateImages, RenameCameras, AugmentImages, ResizeImages)


class VisionFeatures(Cacheable):
    """The vision tower's features: a row per image, `[p, d]`."""

    requires_frozen = "vision tower: policy.freeze=vision (or vlm)"
    replaces = _IMAGE_TRANSFORMS

    def modules(self, policy: Any) -> list[nn.Module]:
        """Return the tower."""
        return [policy.model.vision_tower]

    def sizes(self, config: Any) -> dict[str, Any]:
        """Return the tower's."""
        return {"vision": config.siglip}

    def row(self, config: Any) -> tuple[int, ...]:
        """Return `(p, d)`."""
        return config.tokens_per_image, config.siglip["hidden_size"]

    def upstream(self, pipeline: Pipeline) -> Pipeline:
        """Return those that touch images."""
        return Pipeline([one for one in pipeline.transforms if isinstance(one, self.replaces)])

    def plan(self, frames: Frames) -> tuple[int, str]:
        """Return a row per camera and frame; nothing else decides."""
        _check_one_view(frames)
        if not frames.cameras:
            raise ConfigError(
                "data.feature_cache keeps image features, but there is no camera: leave it out."
            )
        return len(frames) * len(frames.cameras), ""

    def compute(self, policy: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Return the features `[cameras, p, d]` of every frame."""
        mask = batch["pixel_mask"]
        return policy.model.encode_images(batch["pixel_values"][mask]).split(mask.sum(1).tolist())

    def constants(self, sample: Sample) -> dict[str, Any]:
        """Return which camera slots are filled."""
        return {"present": sample["pixel_mask"].tolist()}

    def to_batch(self, rows: torch.Tensor, constants: Mapping[str, Any], longest: int) -> Batch:
        """Return `image_features` `[v, p, d]` and `pixel_mask` `[v]`."""
        present = torch.tensor(constants["present"])
        features = rows.new_zeros(len(present), *rows.shape[1:])
        features[present] = rows
        return {"image_features": features, "pixel_mask": present}


class PrefixCache(Cacheable):
    """The keys and values that the expert reads: a row per token of images and prompt, `[n, 2, k, e]`."""

    requires_frozen = "vision-language model, without an adapter in it: policy.freeze=vlm"
    replaces = (*_IMAGE_TRANSFORMS, TokenizePrompt)

    def modules(self, policy: Any) -> list[nn.Module]:
        """Return the whole vision-language model."""
        model = policy.model
        return [model.vision_tower, model.multi_modal_projector, model.language_model]

    def sizes(self, config: Any) -> dict[str, Any]:
        """Return those of tower and language model."""
        heads = {name: getattr(config, name) for name in ("depth", "num_heads", "num_kv_heads", "head_dim")}
        return {"vision": config.siglip, "vlm": config.vlm, **heads}

    def row(self, config: Any) -> tuple[int, ...]:
        """Return `(n, 2, k, e)`."""
        return config.depth, 2, config.num_kv_heads, config.head_dim

    def upstream(self, pipeline: Pipeline) -> Pipeline:
        """Return all: a prompt may hold the normalised state."""
        return pipeline

    def plan(self, frames: Frames) -> tuple[int, str]:
        """Return a row per token, and a hash of the text tokens of every frame."""
        _check_one_view(frames)
        if frames.pipeline.find(TokenizePrompt).response:
            raise ConfigError(
                "data.feature_cache_of=prefix keeps what the actions read, and text is learned from what it "
                "leaves out: it needs data.response_key=null."
            )
        text = Pipeline([one for one in frames.pipeline.transforms if not isinstance(one, _IMAGE_TRANSFORMS)])
        digest, tokens = hashlib.sha256(), len(frames) * len(frames.cameras) * frames.config.tokens_per_image
        for frame, sample in frames.samples(text, {}):
            ids = sample["input_ids"][sample["attention_mask"].bool()]
            digest.update(np.array([frame, len(ids), *ids.tolist()], dtype=np.int64).tobytes())
            tokens += len(ids)
        return tokens, digest.hexdigest()

    def compute(self, policy: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Return the tokens' keys and values `[s, n, 2, k, e]` of every frame, without padding."""
        names = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")
        cache = policy.model.encode_prefix(*[batch[name] for name in names]).cache
        keys_values, visible = pack_prefix(cache)
        return [row[real] for row, real in zip(keys_values, visible, strict=True)]

    def to_batch(self, rows: torch.Tensor, constants: Mapping[str, Any], longest: int) -> Batch:
        """Return `prefix_keys_values` `[s, n, 2, k, e]` and `prefix_mask` `[s]`, padded alike."""
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        return {"prefix_keys_values": padded, "prefix_mask": torch.arange(longest) < len(rows)}


CACHEABLE: Mapping[str, Cacheable] = {"vision": VisionFeatures(), "prefix": PrefixCache()}
"""By `data.feature_cache_of`."""


def _check_one_view(frames: Frames) -> None:
    if frames.pipeline.find(AugmentImages) is not None:
        raise ConfigError("data.feature_cache keeps one view of every frame: it needs data.augment=false.")


def pack_prefix(cache: KeyValueCache) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a whole cache as two tensors, token by token, that `unpack_prefix` makes a cache of again.

    Returns:
        Keys and values of all `n` layers, `[b, s, n, 2, k, e]`, and which tokens are visible, bool `[b, s]`.
    """
    keys_values = torch.stack([torch.stack(layer, dim=1) for layer in cache.layers], dim=1)
    visible = cache.visible_bs
    if visible is None:
        shape, device = (keys_values.shape[0], cache.length), keys_values.device
        visible = torch.ones(shape, dtype=torch.bool, device=device)
    return keys_values.permute(0, 4, 1, 2, 3, 5), visible


def unpack_prefix(
    keys_values: torch.Tensor, visible_bs: torch.Tensor, lengths: Sequence[int]
) -> KeyValueCache:
    """Return the cache of packed tokens, right-padded; it is trimmed to the longest row.

    Args:
        keys_values: `[b, s, n, 2, k, e]`.
        visible_bs: bool `[b, s]`, True where a token is real.
        lengths: How many of each row are real, as the host knows it.
    """
    number_b = visible_bs.sum(dim=1)
    longest = max(lengths)
    visible_bs = visible_bs[:, :longest]
    layers = keys_values[:, :longest].permute(2, 3, 0, 4, 1, 5).unbind()
    whole = min(lengths) == longest
    return KeyValueCache(tuple((k, v) for k, v in layers), None if whole else visible_bs, number_b)
