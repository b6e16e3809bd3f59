"""From a recipe to what the loop needs: policy, pipelines, datasets and loaders.

Whatever can be wrong with a recipe, a dataset or a pretrained policy shows here, before the run's folder is
made and before the first step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla.data.loading.loader import ResumableLoader
from vla.data.policy_dataset import check_instructions
from vla.errors import ConfigError
from vla.policies.base import Policy
from vla.policies.registry import policy_entry
from vla.train.recipe import Recipe
from vla.train.resolve import resolve
from vla.train.setup.feature_cache import check_place
from vla.train.setup.lengths import warn_of_long_prompts
from vla.train.setup.loaders import samples_of, training_loader, validation_loader
from vla.train.setup.members import (
    DatasetSplit,
    RunMember,
    check_cameras,
    check_same_data,
    naming,
    open_members,
)
from vla.train.setup.policy import check_text, config_of, start, trains_text, with_pipelines
from vla.train.setup.robot import check_same_robot, with_robot
from vla.train.setup.trainable import adapter_config, choose_trained


@dataclass(frozen=True)
class TrainingSetup:
    """What the loop works with.

    Attributes:
        policy: In float32 (the frozen base of an adapter aside), with a pipeline for every member.
        robots: What is trained on, by the pipeline's name; under None where it is one dataset.
        loader: Endless training batches of this process.
        validation: Held-out batches; None without held-out episodes.
        fingerprints: Fingerprints of what is trained on, by path; of a mixture, by the member's name.
    """

    policy: Policy
    robots: Mapping[str | None, DatasetSplit]
    loader: ResumableLoader
    validation: ResumableLoader | None
    fingerprints: Mapping[str, str]

    @property
    def revisions(self) -> dict[str, str]:
        """Commits of those that are hub datasets, by the names of the fingerprints."""
        commits = [robot.dataset.revision for robot in self.robots.values()]
        named = zip(self.fingerprints, commits, strict=True)
        return {name: commit for name, commit in named if commit is not None}


def set_up(
    recipe: Recipe, checkpoint: Path | None, rank: int, processes: int, shards_weights: bool = False
) -> TrainingSetup:
    """Build everything a run needs, from the recipe or, to resume, from a checkpoint and the recipe.

    Args:
        recipe: What to train on what.
        checkpoint: Weights, statistics and tokenizer come from here instead of from the recipe.
        rank: This process.
        processes: Number of processes.
        shards_weights: Whether the engine sends the first process's weights to the others, in shards: those
            then read none.

    Raises:
        ConfigError: Policy, datasets and recipe do not fit each other.
        DatasetError: A dataset is missing or damaged, or an epoch is shorter than a batch.
        TrainingError: A dataset is not the one that the checkpoint was trained on.
        WeightsError: The checkpoint or the pretrained policy is missing or damaged.
    """
    recipe = with_robot(resolve(recipe, policy_entry(recipe.policy.type).policy))
    if checkpoint is None:
        _check_new(recipe)
    policy = start(recipe, checkpoint, load_weights=rank == 0 or not shards_weights)
    config = policy.config if policy is not None else config_of(recipe)
    members = open_members(recipe, config.window)
    for member in members:
        with naming(member.name):
            _check_sees(config.cameras, member)
    check_text(recipe, members)
    if checkpoint is None:
        policy = with_pipelines(recipe, policy, members)
    assert policy is not None
    if checkpoint is not None:
        for member in members:
            with naming(member.name):
                pipeline = policy.pipelines.get(member.name)
                check_same_data(checkpoint, pipeline, member.split.dataset)
                check_same_robot(checkpoint, pipeline, member.data)
    _prepare(policy, recipe, trains_text=trains_text(members), is_resumed=checkpoint is not None)
    for member in members:
        with naming(member.name):
            _check(policy, member)
            if recipe.data.cache == "frames":
                member.split.dataset.preload()  # before workers are forked, so that they share the memory
    samples = samples_of(recipe, policy, members)
    return TrainingSetup(
        policy,
        {member.name: member.split for member in members},
        training_loader(recipe, samples, rank, processes),
        validation_loader(recipe, samples, rank, processes),
        {member.name or member.data.path: member.split.dataset.fingerprint for member in members},
    )


def _check_new(recipe: Recipe) -> None:
    """Refuse early what a run that begins cannot do; older ones that did are continued."""
    if recipe.policy.adapter is not None:
        adapter_config(recipe.policy.adapter)
    if recipe.data.feature_cache is not None:
        check_place(recipe.data.feature_cache, recipe.output)


def _prepare(policy: Policy, recipe: Recipe, *, trains_text: bool, is_resumed: bool) -> None:
    """Choose which weights are trained, which layers forget their activations, whether to compile."""
    policy.training_draws = recipe.train.draws_per_observation
    choose_trained(policy, recipe, trains_text=trains_text, is_resumed=is_resumed)
    if recipe.train.activation_checkpointing != "none":
        policy.activation_checkpointing_enable(
            every_n_layers=2 if recipe.train.activation_checkpointing == "every_2" else 1
        )
    if recipe.train.compile == "stack":
        policy.compile_stack()
    elif recipe.train.compile:
        policy.compile_layers()


def _check_sees(slots: Sequence[str], member: RunMember) -> None:
    """Raise `ConfigError` where the policy looks through cameras, and a dataset has none."""
    if slots and not member.split.cameras and member.data.cameras is not None:
        raise ConfigError(
            "data.cameras names no camera, and the policy looks through at least one: leave it out for all "
            f"of {member.split.dataset.name}'s, or map at least one of its columns to a slot."
        )
    if slots and not member.split.cameras:
        raise ConfigError(
            f"{member.split.dataset.name} has no camera, and the policy looks through at least one: leave "
            "the dataset out, or say with data.cameras which of its columns are images."
        )


def _check(policy: Policy, member: RunMember) -> None:
    """Check that the policy can read a member's samples, and warn of prompts that are too long."""
    pipeline = policy.pipelines[member.name]
    check_cameras(policy, member.split.cameras)
    policy.check_pipeline(pipeline)
    for dataset in (member.split.dataset, member.split.held_out):
        if dataset is not None:
            check_instructions(dataset, pipeline)
    warn_of_long_prompts(pipeline, member.split.dataset)
