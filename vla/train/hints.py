"""What a recipe allows, but its author may not have meant: said in one line each when a run starts."""

import logging
from collections.abc import Iterator
from pathlib import Path

from vla.train.optim import learning_rate_at
from vla.train.recipe import Recipe, TrainSection
from vla.train.recipe_file import RECIPE_FILE, load_recipe

logger = logging.getLogger(__name__)

_JUMP = 0.01
"""Relative change of the learning rate from which a resumed run says so."""

_FIRST_WEIGHTS = 0.1
"""Share of the first weights in the final average from which a run says so."""


def say_hints(recipe: Recipe, checkpoint: Path | None, step: int) -> None:
    """Log what is odd about a run that starts or, from a checkpoint, is resumed after `step` steps."""
    if checkpoint is None:
        hints = at_the_start(recipe.train)
    else:
        hints = when_resumed(load_recipe(checkpoint / RECIPE_FILE), recipe, step)
    for hint in hints:
        logger.warning("%s", hint)


def at_the_start(train: TrainSection) -> Iterator[str]:
    """Yield what is odd about the schedule of a run.

    Args:
        train: How it is trained.
    """
    steps, warmup = train.steps, train.warmup_steps
    if 2 * warmup > steps and warmup > max(1, steps // 20):
        most = max(learning_rate_at(step, train) for step in {min(warmup, steps - 1), steps - 1})
        yield (
            f"train.warmup_steps={warmup} is more than half of train.steps={steps}: the learning rate "
            f"reaches {most / train.learning_rate:.0%} of train.learning_rate at most. A short run wants a "
            f"short warm-up, such as train.warmup_steps={max(1, steps // 20)}."
        )
    if train.decay_steps is not None and train.decay_steps <= warmup < steps:
        yield (
            f"train.decay_steps={train.decay_steps} is not after the warm-up (train.warmup_steps={warmup}): "
            f"the learning rate drops to {train.final_learning_rate:g} right after it."
        )
    if train.final_learning_rate > train.learning_rate:
        yield (
            f"train.final_learning_rate={train.final_learning_rate:g} is above train.learning_rate="
            f"{train.learning_rate:g}: the rate rises to the end. Give both."
        )
    if train.ema is not None and train.ema_power is None and train.ema**steps > _FIRST_WEIGHTS:
        yield (
            f"train.ema={train.ema:g} over {steps} steps keeps {train.ema**steps:.0%} of the weights that "
            "the run begins with, and these averages are what is saved: choose a smaller one, or set "
            "train.ema_power=0.75, which forgets them."
        )


def when_resumed(before: Recipe, now: Recipe, step: int) -> Iterator[str]:
    """Yield what a resumed run makes of a recipe that has changed.

    Args:
        before: The recipe that the checkpoint was trained by.
        now: The present one.
        step: Steps done.
    """
    older, newer = before.train, now.train
    if step >= newer.steps:
        yield f"train.steps={newer.steps} are done: the run is at step {step}, and nothing is trained."
        return
    ended = learning_rate_at(step, older)
    begins = learning_rate_at(step, newer)
    if abs(begins - ended) > _JUMP * max(begins, ended):
        yield (
            f"the learning rate jumps from {ended:.3g} to {begins:.3g} at step {step}, since the cosine ends "
            f"with the run: train.steps was {older.steps}, now {newer.steps}. "
            f"train.decay_steps={older.decay_steps or older.steps} keeps the schedule that it had."
        )
