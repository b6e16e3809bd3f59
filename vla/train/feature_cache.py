"""What a frozen vision tower sees, computed once and kept on disk.

    <folder>/<key>/
      features.npy     [frames, v, p, d], as the tower gives it, by the dataset's global frame number
      present.npy      [frames, v] bool, the camera slots that are filled

The key is a hash of all that decides a feature: the tower's weights, the frames, the cameras, what happens to
a picture on its way to the tower, and the precision. Whatever changes makes a new folder; none is ever wrong.
Training then reads no video and never runs the tower.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vla.atomic import SaveError, atomic_folder
from vla.data.dataset import LeRobotDataset
from vla.data.sample import to_canonical
from vla.errors import ConfigError
from vla.policies.base import Policy
from vla.transforms.base import Pipeline
from vla.transforms.cameras import RenameCameras, RotateImages
from vla.transforms.images import AugmentImages, ResizeImages
from vla.types import Sample

logger = logging.getLogger(__name__)

_FEATURES, _PRESENT = "features.npy", "present.npy"
_PICTURES = (RotateImages, RenameCameras, AugmentImages, ResizeImages)
_BATCH = 8


@dataclass(frozen=True)
class FeatureCache:
    """Features on disk, mapped where they are read; it can be sent to a loader's worker processes.

    Attributes:
        folder: Of one key.
    """

    folder: Path
    _open: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_open": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @cached_property
    def is_bfloat16(self) -> bool:
        """Whether the features are bfloat16, which numpy keeps as its bits."""
        return self._array(_FEATURES).dtype == np.uint16

    def read(self, frame: int) -> Sample:
        """Return `pixel_values` `[v, p, d]` and `pixel_mask` `[v]` of a global frame number."""
        features = torch.from_numpy(self._array(_FEATURES)[frame].copy())
        return {
            "pixel_values": features.view(torch.bfloat16) if self.is_bfloat16 else features,
            "pixel_mask": torch.from_numpy(self._array(_PRESENT)[frame].copy()),
        }

    def _array(self, name: str) -> np.ndarray:
        if name not in self._open:
            self._open[name] = np.load(self.folder / name, mmap_mode="r")
        return self._open[name]


def without_pictures(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline without the transforms that only touch pictures."""
    return Pipeline([one for one in pipeline.transforms if not isinstance(one, _PICTURES)])


def cached_features(
    root: Path | str,
    policy: Policy,
    datasets: Sequence[LeRobotDataset],
    cameras: Mapping[str, str],
    *,
    precision: str,
    device: torch.device | str = "cpu",
) -> FeatureCache:
    """Return the features of all frames of some datasets, from disk or, the first time, computed.

    Args:
        root: Folder of all keys.
        policy: With its pipeline; its vision tower must be frozen, and its pictures not augmented.
        datasets: Parts of one dataset (training and held-out episodes).
        cameras: Camera slot -> dataset key.
        precision: "bf16" or "no", as in training.
        device: Where to compute.

    Raises:
        ConfigError: The tower is trained, or the pictures are augmented.
        SaveError: The disk is full; nothing is left behind.
    """
    assert policy.pipeline is not None
    tower = policy.model.vision_tower
    if any(parameter.requires_grad for parameter in tower.parameters()):
        raise ConfigError("data.feature_cache needs a frozen vision tower: policy.freeze=vision (or vlm).")
    if policy.pipeline.find(AugmentImages) is not None:
        raise ConfigError("data.feature_cache keeps one view of every frame: it needs data.augment=false.")
    look = Pipeline([one for one in policy.pipeline.transforms if isinstance(one, _PICTURES)])
    folder = Path(root) / _key(tower, datasets, cameras, look, precision)
    if not folder.is_dir():
        logger.info("computing the vision features of %d frames into %s", sum(map(len, datasets)), folder)
        try:
            with atomic_folder(folder) as made:
                _compute(made, policy, datasets, cameras, look, precision, torch.device(device))
        except SaveError:
            if not folder.is_dir():  # else another process was quicker, with the same features
                raise
    return FeatureCache(folder)


def _key(
    tower: nn.Module,
    datasets: Sequence[LeRobotDataset],
    cameras: Mapping[str, str],
    look: Pipeline,
    precision: str,
) -> str:
    digest = hashlib.sha256()
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    about = {
        "datasets": sorted(dataset.fingerprint for dataset in datasets),
        "cameras": dict(sorted(cameras.items())),
        "transforms": [{"type": one.name, **one.to_json()} for one in look.transforms],
        "precision": precision,
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    return digest.hexdigest()[:32]


@torch.no_grad()
def _compute(
    folder: Path,
    policy: Policy,
    datasets: Sequence[LeRobotDataset],
    cameras: Mapping[str, str],
    look: Pipeline,
    precision: str,
    device: torch.device,
) -> None:
    model, config = policy.model, policy.config
    slots, width = len(config.cameras), config.siglip["hidden_size"]
    frames = 1 + max(int(dataset.low_dim("index").max()) for dataset in datasets)
    dtype = np.dtype(np.uint16) if precision == "bf16" else np.dtype(np.float32)
    shape = (frames, slots, config.tokens_per_image, width)
    features = np.lib.format.open_memmap(folder / _FEATURES, mode="w+", dtype=dtype, shape=shape)
    present = np.lib.format.open_memmap(folder / _PRESENT, mode="w+", dtype=bool, shape=(frames, slots))
    tower = model.vision_tower.to(device).eval()
    for dataset in datasets:
        for start in range(0, len(dataset), _BATCH):
            items = [dataset[row] for row in range(start, min(start + _BATCH, len(dataset)))]
            samples = [look.forward(_pictures(item, dataset, cameras)) for item in items]
            rows = np.array([int(item["index"]) for item in items])
            mask = torch.stack([sample["pixel_mask"] for sample in samples])
            pictures = torch.stack([sample["pixel_values"] for sample in samples])[mask].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                seen = model.look(pictures)
            full = torch.zeros(*mask.shape, *shape[2:], dtype=seen.dtype)
            full[mask] = seen.cpu()
            kept = full.bfloat16().view(torch.uint16) if precision == "bf16" else full.float()
            features[rows], present[rows] = kept.numpy(), mask.numpy()
    features.flush()
    present.flush()
    tower.train(policy.training)


def _pictures(item: Sample, dataset: LeRobotDataset, cameras: Mapping[str, str]) -> Sample:
    return {"images": to_canonical(item, cameras, dataset.state_key, dataset.action_key)["images"]}
