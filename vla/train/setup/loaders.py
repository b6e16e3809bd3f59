"""Batches of a run: every member's items through its own pipeline, in the run's order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vla.data.dataset import LeRobotDataset
from vla.data.loading.file_order import WindowedEpochs
from vla.data.loading.loader import ResumableLoader
from vla.data.loading.mixture import Member, Mixture
from vla.data.loading.order import Epochs, WholeDataset
from vla.data.sample import to_canonical
from vla.policies.base import Policy
from vla.train.recipe import DataSection, Recipe
from vla.train.setup.feature_cache import FeatureCache, cached_features, padded_alike
from vla.train.setup.lengths import by_length, text_lengths
from vla.train.setup.members import RunMember, naming
from vla.transforms.base import Pipeline
from vla.types import Sample


@dataclass(frozen=True)
class SampleTransform:
    """One item of the dataset -> the policy's tensors; sent to the loader's worker processes."""

    cameras: Mapping[str, str]
    data: DataSection
    pipeline: Pipeline
    augment: bool = True
    features: FeatureCache | None = None

    def __call__(self, item: Sample, generator: torch.Generator | None) -> Sample:
        """Return the tensors of one sample; `generator` is its source of augmentation."""
        data = self.data
        sample = to_canonical(item, self.cameras, data.state_key, data.action_key, data.response_key)
        tensors = self.pipeline.forward(sample, generator if self.augment else None)
        return tensors if self.features is None else tensors | self.features.read(int(item["index"]))


@dataclass(frozen=True)
class MemberSamples:
    """What one member's samples are made of.

    Attributes:
        member: Whose they are.
        pipeline: The policy's for it.
        training: Its training episodes; without images where their features are kept.
        held_out: Its validation episodes, or None; the same.
        transform: An item of either to the policy's tensors, as in training.
    """

    member: RunMember
    pipeline: Pipeline
    training: LeRobotDataset
    held_out: LeRobotDataset | None
    transform: SampleTransform


def samples_of(recipe: Recipe, policy: Policy, members: Sequence[RunMember]) -> list[MemberSamples]:
    """Return how the members' samples are made; features that are to be kept are computed here.

    Raises:
        ConfigError: What makes the features (`data.feature_cache`) is trained, or they would be wrong.
        SaveError: The disk is too small for them.
    """
    if recipe.data.feature_cache is None:
        return [_plain_samples(policy, member) for member in members]
    caches: list[FeatureCache] = []
    for member in members:
        with naming(member.name):
            caches.append(_cached_features(recipe, policy, member))
    return [
        _cached_samples(policy, member, features)
        for member, features in zip(members, padded_alike(caches), strict=True)
    ]


def _plain_samples(policy: Policy, member: RunMember) -> MemberSamples:
    pipeline, split = policy.pipelines[member.name], member.split
    transform = SampleTransform(split.cameras, member.data, pipeline)
    return MemberSamples(member, pipeline, split.dataset, split.held_out, transform)


def _cached_samples(policy: Policy, member: RunMember, features: FeatureCache) -> MemberSamples:
    """Return how to read what the frozen parts made of a frame, instead of the frame."""
    pipeline, split = policy.pipelines[member.name], member.split
    transform = SampleTransform({}, member.data, features.remaining(pipeline), features=features)
    held_out = None if split.held_out is None else split.held_out.without_images()
    return MemberSamples(member, pipeline, split.dataset.without_images(), held_out, transform)


def _cached_features(recipe: Recipe, policy: Policy, member: RunMember) -> FeatureCache:
    split, root = member.split, recipe.data.feature_cache
    assert root is not None
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return cached_features(
        root,
        policy,
        [one for one in (split.dataset, split.held_out) if one is not None],
        split.cameras,
        precision=recipe.train.precision,
        device=device or "cpu",
        of=recipe.data.feature_cache_of,
        pipeline=policy.pipelines[member.name],
    )


def training_loader(
    recipe: Recipe, samples: Sequence[MemberSamples], rank: int, processes: int
) -> ResumableLoader:
    """Return the endless training batches of this process."""
    train, data = recipe.train, recipe.data
    epochs: Epochs
    if data.mixture is None:
        (only,) = samples
        dataset, transform = only.training, only.transform
        epochs = WholeDataset(len(dataset), train.seed)
        if data.streaming:
            epochs = WindowedEpochs(dataset.shuffle_window(data.streaming_window), train.seed)
    else:
        dataset = Mixture([_mixed(one, one.training, one.transform) for one in samples])
        transform, epochs = dataset.transform, dataset.epochs(train.seed, train.batch_size)
    if data.bucket_by_length:
        lengths = [text_lengths(one.pipeline, one.training, one.member.data.response_key) for one in samples]
        epochs = by_length(epochs, np.concatenate(lengths), train, processes)
    return _loader(
        recipe,
        rank,
        processes,
        dataset=dataset,
        transform=transform,
        batch_size=train.batch_size,
        augmented=data.augment,
        epochs=epochs,
    )


def validation_loader(
    recipe: Recipe, samples: Sequence[MemberSamples], rank: int, processes: int
) -> ResumableLoader | None:
    """Return batches of held-out samples: in the dataset's order, or of a mixture by the same weights.

    None where nothing is held out.
    """
    train = recipe.train
    held_out = [
        (one, one.held_out, replace(one.transform, augment=False))
        for one in samples
        if one.held_out is not None
    ]
    if not held_out:
        return None
    if recipe.data.mixture is None:
        _, dataset, transform = held_out[0]
        size = min(train.batch_size, max(1, len(dataset) // processes))
        order: dict[str, Any] = {"shuffle": False}
    else:
        dataset = Mixture([_mixed(*one) for one in held_out])
        transform = dataset.transform
        size = min(train.batch_size, max(1, dataset.epochs(train.seed, 1).length // processes))
        order = {"epochs": dataset.epochs(train.seed, size)}
    return _loader(recipe, rank, processes, dataset=dataset, transform=transform, batch_size=size, **order)


def _mixed(samples: MemberSamples, dataset: LeRobotDataset, transform: SampleTransform) -> Member:
    """Return a mixture's member that reads some of a run's member's episodes."""
    member, data = samples.member, samples.member.data
    assert member.name is not None
    assert member.weight is not None
    window = dataset.shuffle_window(data.streaming_window) if data.streaming else None
    return Member(member.name, dataset, member.weight, transform, window)


def _loader(recipe: Recipe, rank: int, processes: int, **options: Any) -> ResumableLoader:
    return ResumableLoader(
        seed=recipe.train.seed,
        num_workers=recipe.data.num_workers,
        rank=rank,
        world_size=processes,
        cache="samples" if recipe.data.cache == "samples" else "none",
        **options,
    )
