"""The policy that a run starts from, and its pipelines: a checkpoint's, a pretrained one's, or fresh ones."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vla.data.dataset import LeRobotDataset
from vla.data.interface import interface_of
from vla.data.stats import compute_statistics
from vla.data.stats_warnings import warn_of_statistics
from vla.errors import ConfigError
from vla.interface import VectorInterface
from vla.policies.base import Policy
from vla.policies.registry import make_config, make_policy, policy_entry
from vla.train.checkpoint.same_run import moved_base
from vla.train.recipe import Recipe
from vla.train.recipe_file import RECIPE_FILE, load_recipe
from vla.train.resolve import normalization_modes
from vla.train.seeds import INITIALISATION, derive_seed
from vla.train.setup.members import RunMember, naming
from vla.train.setup.robot import robot_of
from vla.train.setup.trainable import start_quantized
from vla.transforms.actions import DeltaActions
from vla.transforms.base import Pipeline
from vla.transforms.prompt import clean
from vla.transforms.tokenizer import load_tokenizer, train_tokenizer
from vla.types import DatasetFacts

logger = logging.getLogger(__name__)

TINY_VOCABULARY = 512
"""Tokens to aim for where a tokenizer is trained on a dataset's few texts; it grows if they need more."""


def start(recipe: Recipe, checkpoint: Path | None, *, load_weights: bool = True) -> Policy | None:
    """Return the policy to start from; None where its weights are to be random.

    In float32, but for what a quantised base keeps in fewer bits: that is frozen. Without `load_weights` its
    weights may be left without values; an adapter's base and the source of cached features have them all the
    same, since their values are looked at.
    """
    wanted, expected = recipe.policy, policy_entry(recipe.policy.type).policy
    base = None
    if checkpoint is not None and wanted.adapter is not None:
        base = moved_base(load_recipe(checkpoint / RECIPE_FILE), recipe)
    if wanted.adapter is not None and wanted.adapter.quantize is not None:
        return start_quantized(recipe, checkpoint, base)
    needs_values = wanted.adapter is not None or recipe.data.feature_cache is not None
    options: dict[str, Any] = {"dtype": torch.float32, "load_weights": load_weights or needs_values}
    if checkpoint is not None:
        return expected.from_pretrained(checkpoint, base=base, **options)
    if wanted.pretrained is not None:
        return expected.from_pretrained(wanted.pretrained, config=wanted.config, **options)
    if wanted.backbone_source is not None:
        torch.manual_seed(derive_seed(recipe.train.seed, INITIALISATION))
        return expected.from_backbone(wanted.backbone_source, wanted.config, **options)
    return None


def config_of(recipe: Recipe, facts: DatasetFacts | None = None) -> Any:
    """Return the config of a policy that is trained from scratch; the recipe outranks the facts."""
    return make_config(recipe.policy.type, _fields(recipe, facts), recipe.policy.preset)


def with_pipelines(recipe: Recipe, policy: Policy | None, members: Sequence[RunMember]) -> Policy:
    """Return the policy, made where there is none, with a new pipeline for every member and no other.

    Args:
        recipe: The run's.
        policy: Where to start from; None where its weights are to be random.
        members: What it is trained on.

    Raises:
        ConfigError: Policy, datasets and recipe do not fit each other.
        DatasetError: A dataset has no column that the recipe names.
    """
    tokenizer = None
    if policy_entry(recipe.policy.type).policy.reads_text:
        text_sources = [(member.split.dataset, member.data.response_key) for member in members]
        tokenizer = tokenizer_of(recipe, policy, text_sources)
    if policy is None:
        policy = fresh_policy(recipe, members, None if tokenizer is None else len(tokenizer))
    # All or none give labels, so that they can share a batch: without a response, there is no text to learn.
    text = trains_text(members)
    pipelines: dict[str | None, Pipeline] = {}
    for member in members:
        with naming(member.name):
            pipelines[member.name] = make_pipeline(policy, member, tokenizer, text=text)
    policy.pipelines, policy.tokenizer = pipelines, tokenizer
    return policy


def trains_text(members: Sequence[RunMember]) -> bool:
    """Return whether any sample has text to learn."""
    return any(member.data.response_key is not None for member in members)


def check_text(recipe: Recipe, members: Sequence[RunMember]) -> None:
    """Raise `ConfigError` where the recipe asks for text of a policy that reads none."""
    policy = policy_entry(recipe.policy.type).policy
    asked = {
        "data.response_key": trains_text(members),
        "data.bucket_by_length": recipe.data.bucket_by_length,
        "policy.tokenizer": recipe.policy.tokenizer is not None,
    }
    if not policy.reads_text and any(asked.values()):
        keys = ", ".join(key for key, is_asked in asked.items() if is_asked)
        raise ConfigError(f"{policy.__name__} reads no text: leave out {keys}.")


def fresh_policy(recipe: Recipe, members: Sequence[RunMember], vocabulary: int | None) -> Policy:
    """Return a policy with random weights, and what the datasets decide where the recipe does not."""
    fields = _fields(recipe, _facts(recipe, members, vocabulary))
    torch.manual_seed(derive_seed(recipe.train.seed, INITIALISATION))
    return make_policy(recipe.policy.type, fields, recipe.policy.preset).float()


def tokenizer_of(
    recipe: Recipe, policy: Policy | None, text_sources: Sequence[tuple[LeRobotDataset, str | None]]
) -> Any:
    """Return the recipe's tokenizer, else the pretrained policy's, else a small one of the data's texts.

    Args:
        recipe: The run's.
        policy: Where to start from; None where its weights are to be random.
        text_sources: Datasets, whose tasks are texts, each with its column of responses, if it has one.

    Raises:
        ConfigError: The tokenizer cannot be read, or the pretrained policy brings none.
        DatasetError: There is no such column.
    """
    if recipe.policy.tokenizer is not None:
        return load_tokenizer(recipe.policy.tokenizer)
    if recipe.policy.backbone_source is not None:
        return load_tokenizer(recipe.policy.backbone_source)
    if policy is not None:
        known = [pipeline.tokenizer for pipeline in policy.pipelines.values()] + [policy.tokenizer]
        found = next((one for one in known if one is not None), None)
        if found is None:
            raise ConfigError(
                f"{recipe.policy.pretrained} comes without a tokenizer; name one with policy.tokenizer "
                "(published weights read google/paligemma-3b-pt-224's)."
            )
        return found
    texts = {clean(task) for dataset, _ in text_sources for task in dataset.tasks}
    for dataset, response_key in text_sources:
        if response_key is not None:
            texts |= set(dataset.texts(response_key))
    return train_tokenizer(sorted(texts), vocab_size=TINY_VOCABULARY)


def make_pipeline(policy: Policy, member: RunMember, tokenizer: Any, *, text: bool) -> Pipeline:
    """Compute the statistics of the training episodes and build the policy's pipeline around them.

    Args:
        policy: Its config says what the pipeline must make.
        member: One dataset of the run, and its own recipe.
        tokenizer: What its text is read with; None for a policy that reads none.
        text: Whether any member's samples have text to learn.
    """
    data, dataset = member.data, member.split.dataset
    robot = robot_of(data, dataset)
    interface = interface_of(dataset.info, data.state_key, data.action_key, member.split.cameras)
    if robot is not None:
        interface = replace(
            interface,
            state=VectorInterface(robot.state_names),
            action=VectorInterface(robot.action_names),
            frequency=robot.frequency,
        )
    conventions = [] if robot is None else robot.transforms()
    delta = [DeltaActions(data.delta_mask)] if data.delta_mask is not None and any(data.delta_mask) else []
    logger.info("computing the statistics of %d frames", len(dataset))
    before = Pipeline([*conventions, *delta])
    statistics = compute_statistics(dataset, before)
    for warning in warn_of_statistics(statistics, dataset, before):
        logger.warning(warning.message)
    pipeline = policy_entry(member.recipe.policy.type).make_pipeline(
        policy.config,
        statistics=statistics,
        tokenizer=tokenizer,
        state_dim=dataset.state_dim,
        action_dim=dataset.action_dim,
        delta_mask=data.delta_mask,
        normalization=normalization_modes(data.normalization, type(policy)),
        augment=data.augment,
        text=text,
        interface=interface,
        robot=member.name,
    )
    return Pipeline([*conventions, *pipeline.transforms], interface)


def _fields(recipe: Recipe, facts: DatasetFacts | None) -> dict[str, Any]:
    derived = {} if facts is None else policy_entry(recipe.policy.type).config.from_facts(facts)
    return {**derived, **recipe.policy.config}


def _facts(recipe: Recipe, members: Sequence[RunMember], vocabulary: int | None) -> DatasetFacts:
    """Return what the members together are like: slots of all of them, the largest widths."""
    datasets = [member.split.dataset for member in members]
    return DatasetFacts(
        cameras=tuple(dict.fromkeys(slot for member in members for slot in member.split.cameras)),
        wrist_cameras=_wrist_cameras(recipe, members),
        state_dim=max(dataset.state_dim for dataset in datasets),
        action_dim=max(dataset.action_dim for dataset in datasets),
        fps=datasets[0].info.fps,
        vocabulary=vocabulary,
        robots=tuple(member.name for member in members if member.name is not None),
    )


def _wrist_cameras(recipe: Recipe, members: Sequence[RunMember]) -> tuple[str, ...] | None:
    """Return the slots that ride on a gripper: the recipe says, or a robot file; None where neither does.

    Where a member's robot says, the others' are those of the policy's own rule.
    """
    given = [member.data.wrist_cameras for member in members]
    if recipe.data.wrist_cameras is not None or all(slots is None for slots in given):
        return recipe.data.wrist_cameras
    found: list[str] = []
    for member, slots in zip(members, given, strict=True):
        if slots is None:
            config = config_of(member.recipe, _facts(member.recipe, [member], None))
            slots = getattr(config, "wrist_cameras", None) or ()
        found += slots
    return tuple(dict.fromkeys(found))
