"""What frozen parts of a policy make of every frame, computed once and kept on disk.

What there is to keep is the policy's business (`Policy.cacheable`): it says how many rows a frame has, which
modules compute them, and what `forward` takes in their place. Here are the folders and the loop.

The folder `<root>/<key>/` is named by a hash of all that decides its numbers: the weights, the frames, the
cameras, the transforms whose work is in it, the precision, and whatever else the policy names (for a prefix
every token of every prompt). Whatever changes makes a new folder; none is ever wrong. Training then reads no
video and never runs those modules.
"""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from vla.atomic import SaveError, atomic_folder, one_at_a_time
from vla.data.dataset import LeRobotDataset
from vla.data.sample import to_canonical
from vla.errors import ConfigError, did_you_mean
from vla.paths import kept
from vla.policies.base import Policy
from vla.policies.cacheable import Cacheable
from vla.terminal import progress
from vla.train.setup.feature_store import FeatureStore, FrameWriter
from vla.transforms.base import Pipeline
from vla.types import Batch, Sample

logger = logging.getLogger(__name__)

_BATCH = 8
_FORM = 4  # number of the files' layout; other layouts have other folders


@dataclass(frozen=True)
class FrameSource:
    """Where features come from.

    Attributes:
        policy: Its config and weights.
        pipeline: The policy's pipeline for these datasets.
        datasets: Parts of one dataset (training and held-out episodes).
        cameras: Camera slot -> dataset key.
    """

    policy: Policy
    pipeline: Pipeline
    datasets: Sequence[LeRobotDataset]
    cameras: Mapping[str, str]

    @property
    def config(self) -> Any:
        """The policy's config."""
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


@dataclass(frozen=True)
class FeatureCache:
    """Features on disk; it can be sent to a loader's worker processes.

    Attributes:
        features: What they are.
        store: Where they are.
        longest: The most rows of any frame that may share a batch with theirs.
    """

    features: Cacheable
    store: FeatureStore
    longest: int

    def read(self, frame: int) -> Batch:
        """Return what the policy takes in the place of a frame, by its global number."""
        store = self.store
        return self.features.to_batch(store.read(frame), store.about["constants"], self.longest)

    def remaining(self, pipeline: Pipeline) -> Pipeline:
        """Return the transforms that training still needs."""
        replaced = self.features.replaces
        return Pipeline([one for one in pipeline.transforms if not isinstance(one, replaced)])


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
        of: What to keep, a name in `policy.cacheable()`.
        pipeline: The policy's pipeline for these datasets; its `pipeline` where not given.

    Raises:
        ConfigError: The policy has no such features, what makes them is trained, the images are augmented, or
            text is trained that the features do not hold.
        DatasetError: What is kept was damaged or changed.
        SaveError: The disk is too small, or full; nothing is left behind.
    """
    features, pipeline = _choose(policy, of), policy.pipeline if pipeline is None else pipeline
    assert pipeline is not None
    source = FrameSource(policy, pipeline, datasets, cameras)
    modules = features.modules(policy)
    if any(parameter.requires_grad for module in modules for parameter in module.parameters()):
        raise ConfigError(f"data.feature_cache needs a frozen {features.requires_frozen}.")
    rows, decided = features.plan(source)
    folder = kept(root) / _key(features, source, decided, precision)
    with one_at_a_time(folder):
        if not folder.is_dir():
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            size = rows * math.prod(features.row(source.config)) * dtype.itemsize
            logger.info(
                "computing the %s features of %d frames into %s: %.3g GB", of, len(source), folder, size / 1e9
            )
            _check_space(folder.parent, size)
            try:
                with atomic_folder(folder) as made:
                    _compute(made, features, source, dtype, torch.device(device), folder.name)
            except SaveError:
                if not folder.is_dir():  # else, without locks, another process was quicker
                    raise
    store = FeatureStore(folder)
    store.check(folder.name)
    return FeatureCache(features, store, store.longest)


def check_place(root: Path | str, run: Path | str) -> None:
    """Raise `ConfigError` where features cannot be kept in a folder.

    Args:
        root: Folder of all keys.
        run: The folder of the run that is about to begin.
    """
    if os.path.lexists(root) and not os.path.isdir(root):
        raise ConfigError(f"data.feature_cache={root} is a file, or a link to nothing: give a folder.")
    if Path(root).resolve().is_relative_to(Path(run).resolve()):
        raise ConfigError(
            f"data.feature_cache={root} lies in the run's folder, output={run}: choose a folder outside it, "
            "which other runs can share."
        )


def padded_alike(caches: Sequence[FeatureCache]) -> list[FeatureCache]:
    """Return caches whose frames may share a batch: padded to the longest of all."""
    longest = max((cache.longest for cache in caches), default=0)
    return [replace(cache, longest=longest) for cache in caches]


def _choose(policy: Policy, of: str) -> Cacheable:
    """Return what is to be kept, or say what there is to choose from."""
    choices = policy.cacheable()
    if not choices:
        raise ConfigError(f"{type(policy).__name__} has no features to keep: leave data.feature_cache out.")
    if of not in choices:
        raise ConfigError(
            f"data.feature_cache_of must be one of {', '.join(choices)} for {type(policy).__name__}, got "
            f"'{of}'.{did_you_mean(of, choices)}"
        )
    return choices[of]


def _key(features: Cacheable, source: FrameSource, decided: str, precision: str) -> str:
    digest = hashlib.sha256()
    for module in features.modules(source.policy):
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    replaced = [one for one in source.pipeline.transforms if isinstance(one, features.replaces)]
    about = {
        "form": _FORM,
        "features": type(features).__name__,
        "sizes": features.sizes(source.config),
        "datasets": sorted(dataset.fingerprint for dataset in source.datasets),
        "cameras": dict(sorted(source.cameras.items())),
        "transforms": [{"type": one.name, **one.to_json()} for one in replaced],
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
            "folder on another disk, fewer episodes, or smaller features (data.feature_cache_of)."
        )


@torch.no_grad()
def _compute(
    folder: Path,
    features: Cacheable,
    source: FrameSource,
    dtype: torch.dtype,
    device: torch.device,
    key: str,
) -> None:
    policy, modules = source.policy, features.modules(source.policy)
    for module in modules:
        module.to(device).eval()
    frames = 1 + max(int(dataset.low_dim("index").max()) for dataset in source.datasets)
    every = source.samples(features.upstream(source.pipeline), source.cameras)
    writing = FrameWriter(folder, frames, features.row(source.config), dtype)
    writing.about["key"] = key
    with writing as writer, progress("features") as show:
        samples, done = iter(every), 0
        while chunk := list(islice(samples, _BATCH)):
            batch = {
                name: torch.stack([sample[name] for _, sample in chunk]).to(device)
                for name, value in chunk[0][1].items()
                if isinstance(value, torch.Tensor)
            }
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                computed = features.compute(policy, batch)
            for (frame, _), rows in zip(chunk, computed, strict=True):
                writer.append(frame, rows)
            writer.about["constants"] = features.constants(chunk[0][1])
            done += len(chunk)
            show(done, len(source))
    for module in modules:
        module.train(policy.training)
