"""Set-up of a run: one dataset, or a mixture."""

from pathlib import Path

from vla.policies.registry import policy_entry
from vla.train.recipe import Recipe
from vla.train.resolve import resolve
from vla.train.setup.job import Job, set_up_one, start
from vla.train.setup.members import set_up_mixture
from vla.train.setup.robot import with_robot


def set_up(
    recipe: Recipe, checkpoint: Path | None, rank: int, processes: int, shards_weights: bool = False
) -> Job:
    """Build everything a run needs, from the recipe or, to resume, from a checkpoint and the recipe.

    Args:
        recipe: What to train on what.
        checkpoint: Weights, statistics and tokenizer come from here instead of from the recipe.
        rank: This process.
        processes: Number of processes.
        shards_weights: Whether the engine sends the first process's weights to the others, in shards: those
            then read none.

    Raises:
        ConfigError: Policy, dataset and recipe do not fit each other.
        DatasetError: The dataset is missing or damaged.
        TrainingError: The dataset is not the one that the checkpoint was trained on.
        WeightsError: The checkpoint or the pretrained policy is missing or damaged.
    """
    recipe = with_robot(resolve(recipe, policy_entry(recipe.policy.type).policy))
    policy = start(recipe, checkpoint, fill=rank == 0 or not shards_weights)
    if recipe.data.mixture is not None:
        return set_up_mixture(recipe, policy, checkpoint, rank, processes)
    return set_up_one(recipe, policy, checkpoint, rank, processes)
