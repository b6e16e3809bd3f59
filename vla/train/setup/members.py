"""A recipe's mixture (`data.mixture`): every member set up as though it were alone, and drawn from by weight.

    data:
      mixture:
        - {path: lerobot/aloha_x, weight: 2, robot: recipes/robots/aloha.yaml}
        - {path: data/widowx, weight: 1, cameras: {base_0_rgb: observation.images.image_0}}

Each member keeps its own cameras, columns, conventions and statistics, in a pipeline that the checkpoint
holds under the member's name; what they share is the policy, its camera slots and the tokenizer. Control
frequencies stay what they are: a chunk is the same number of steps of every robot.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla.data.dataset import LeRobotDataset
from vla.data.loading.loader import ResumableLoader
from vla.data.loading.mixture import Member, Mixture
from vla.data.loading.order import Epochs
from vla.errors import ConfigError, VlaError
from vla.policies.base import Policy
from vla.train.recipe import MixtureMember, Recipe
from vla.train.setup.job import (
    Job,
    Recordings,
    SampleTransform,
    camera_slots,
    check_fit,
    check_same_data,
    config_of,
    fresh_policy,
    make_pipeline,
    open_datasets,
    prepare,
    tokenizer_of,
    warn_of_long_prompts,
)
from vla.train.setup.lengths import by_length, text_lengths
from vla.train.setup.robot import with_robot
from vla.transforms.base import Pipeline
from vla.transforms.named_pipelines import check_name


@dataclass(frozen=True)
class Part:
    """One member, opened.

    Attributes:
        name: Of its pipeline.
        weight: Its share of the samples.
        recipe: As though it were the only dataset.
        dataset: Its training episodes.
        held_out: Its validation episodes, or None.
        cameras: Camera slot of the policy -> its camera key.
    """

    name: str
    weight: float
    recipe: Recipe
    dataset: LeRobotDataset
    held_out: LeRobotDataset | None
    cameras: Mapping[str, str]


def set_up_mixture(
    recipe: Recipe, policy: Policy | None, checkpoint: Path | None, rank: int, processes: int
) -> Job:
    """Build everything a run on a mixture needs; see `vla.train.setup.job.set_up`.

    Args:
        recipe: With `data.mixture`.
        policy: To start from; None where its weights are to be random.
        checkpoint: That the policy was resumed from, or None.
        rank: This process.
        processes: Number of processes.

    Raises:
        ConfigError: A member does not fit the policy, two have one name, or the recipe asks for what a
            mixture cannot do.
        DatasetError: A dataset is missing or damaged, or an epoch is shorter than a batch.
        TrainingError: A dataset is not the one that the checkpoint was trained on.
    """
    if recipe.data.feature_cache is not None:
        raise ConfigError(
            "data.feature_cache is for one dataset, and data.mixture has several: leave it out."
        )
    config = policy.config if policy is not None else config_of(recipe)
    parts = _open(recipe, config.action_horizon)
    if checkpoint is not None:
        assert policy is not None
        for part in parts:
            with _naming(part.name):
                check_same_data(checkpoint, policy.pipelines.get(part.name), part.dataset)
    else:
        policy = _with_pipelines(recipe, policy, parts)
    assert policy is not None
    prepare(policy, recipe, trains_text=_trains_text(parts), is_resumed=checkpoint is not None)
    for part in parts:
        with _naming(part.name):
            check_fit(policy, policy.pipelines[part.name], part.cameras)
            warn_of_long_prompts(policy.pipelines[part.name], part.dataset)
            if recipe.data.cache == "frames":
                part.dataset.preload()  # before workers are forked, so that they share the memory
    training = Mixture([_member(part, part.dataset, policy, augment=True) for part in parts])
    loader = _loader(
        recipe,
        training,
        recipe.train.batch_size,
        rank,
        processes,
        augmented=recipe.data.augment,
        epochs=_epochs(recipe, training, policy, parts, processes),
    )
    validation = _validation(recipe, policy, parts, rank, processes)
    fingerprints = {part.name: part.dataset.fingerprint for part in parts}
    robots: dict[str | None, Recordings] = {
        part.name: Recordings(part.dataset, part.held_out, part.cameras) for part in parts
    }
    return Job(policy, robots, loader, validation, fingerprints)


def member_recipes(recipe: Recipe) -> dict[str, Recipe]:
    """Return each member's recipe, as though it were the only dataset, by its pipeline's name.

    Raises:
        ConfigError: There are no members, two have one name, a name cannot be a folder's, or a robot file
            does not fit its member.
    """
    assert recipe.data.mixture is not None
    if not recipe.data.mixture:
        raise ConfigError("data.mixture is empty: list at least one dataset, or give data.path.")
    recipes: dict[str, Recipe] = {}
    for member in recipe.data.mixture:
        name = check_name(member_name(member))
        if name in recipes:
            raise ConfigError(
                f"Two members of data.mixture are called '{name}': tell them apart by their name."
            )
        with _naming(name):
            recipes[name] = with_robot(_alone(recipe, member))
    return recipes


def member_name(member: MixtureMember) -> str:
    """Return what a member's pipeline is called in the checkpoint."""
    return member.name or member.path.rstrip("/").rsplit("/", 1)[-1]


def _alone(recipe: Recipe, member: MixtureMember) -> Recipe:
    """Return the recipe with a member's own values in the place of `data`'s."""
    own = {key: getattr(member, key) for key in member.model_fields_set - {"name", "weight"}}
    # The wrist cameras of all members together are no single robot's.
    data = recipe.data.model_copy(update={"mixture": None, "wrist_cameras": None, **own})
    return recipe.model_copy(update={"data": data})


def _open(recipe: Recipe, horizon: int) -> list[Part]:
    assert recipe.data.mixture is not None
    parts = []
    for (name, alone), member in zip(member_recipes(recipe).items(), recipe.data.mixture, strict=True):
        with _naming(name):
            dataset, held_out = open_datasets(alone.data, horizon, recipe.train.seed)
            cameras = camera_slots(alone.data, dataset)
        parts.append(Part(name, member.weight, alone, dataset, held_out, cameras))
    return parts


def _with_pipelines(recipe: Recipe, policy: Policy | None, parts: Sequence[Part]) -> Policy:
    """Return the policy, made where there is none, with a pipeline for every member and none of its own."""
    tokenizer = tokenizer_of(
        recipe, policy, [(part.dataset, part.recipe.data.response_key) for part in parts]
    )
    if policy is None:
        policy = _fresh(recipe, parts, len(tokenizer))
    # All or none give labels, so that they can share a batch: without a response, there is no text to learn.
    text = _trains_text(parts)
    pipelines: dict[str, Pipeline] = {}
    for part in parts:
        with _naming(part.name):
            pipelines[part.name] = make_pipeline(part.recipe, policy, part.dataset, tokenizer, text=text)
    policy.pipeline, policy.pipelines, policy.tokenizer = None, pipelines, tokenizer
    return policy


def _trains_text(parts: Sequence[Part]) -> bool:
    return any(part.recipe.data.response_key is not None for part in parts)


def _fresh(recipe: Recipe, parts: Sequence[Part], vocabulary: int) -> Policy:
    """Return a policy with a slot for every camera of any member."""
    slots = list(dict.fromkeys(slot for part in parts for slot in part.cameras))
    wrist = recipe.data.wrist_cameras
    if wrist is None and any(part.recipe.data.wrist_cameras is not None for part in parts):
        wrist = tuple(dict.fromkeys(slot for part in parts for slot in _wrist_slots(part)))
    data = recipe.data.model_copy(update={"wrist_cameras": wrist})
    return fresh_policy(recipe.model_copy(update={"data": data}), slots, vocabulary)


def _wrist_slots(part: Part) -> Sequence[str]:
    """Return which of a member's slots ride on a gripper: its robot file says, or the policy's own rule."""
    if part.recipe.data.wrist_cameras is not None:
        return part.recipe.data.wrist_cameras
    return tuple(config_of(part.recipe, cameras=list(part.cameras)).wrist_cameras)


def _member(part: Part, dataset: LeRobotDataset, policy: Policy, augment: bool) -> Member:
    data = part.recipe.data
    transform = SampleTransform(part.cameras, data, policy.pipelines[part.name], augment)
    window = dataset.shuffle_window(data.streaming_window) if data.streaming else None
    return Member(part.name, dataset, part.weight, transform, window)


def _epochs(
    recipe: Recipe, mixture: Mixture, policy: Policy, parts: Sequence[Part], processes: int
) -> Epochs:
    """Return what the epochs of the training hold, in which order."""
    epochs = mixture.epochs(recipe.train.seed, recipe.train.batch_size)
    if not recipe.data.bucket_by_length:
        return epochs
    lengths = [
        text_lengths(policy.pipelines[part.name], part.dataset, part.recipe.data.response_key)
        for part in parts
    ]
    return by_length(epochs, np.concatenate(lengths), recipe.train, processes)


def _validation(
    recipe: Recipe, policy: Policy, parts: Sequence[Part], rank: int, processes: int
) -> ResumableLoader | None:
    """Return batches of held-out samples, by the same weights; None where no member holds any out."""
    members = [
        _member(part, part.held_out, policy, augment=False) for part in parts if part.held_out is not None
    ]
    if not members:
        return None
    plain = Mixture(members)
    draws = plain.epochs(recipe.train.seed, 1).length
    size = min(recipe.train.batch_size, max(1, draws // processes))
    epochs = plain.epochs(recipe.train.seed, size)
    return _loader(recipe, plain, size, rank, processes, augmented=False, epochs=epochs)


def _loader(
    recipe: Recipe, mixture: Mixture, size: int, rank: int, processes: int, **options: Any
) -> ResumableLoader:
    seed, data = recipe.train.seed, recipe.data
    return ResumableLoader(
        mixture,
        mixture.transform,
        size,
        seed,
        num_workers=data.num_workers,
        rank=rank,
        world_size=processes,
        cache="samples" if data.cache == "samples" else "none",
        **options,
    )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say in an error which member it is about."""
    try:
        yield
    except VlaError as error:
        raise type(error)(f"data.mixture, '{name}': {error}") from error
