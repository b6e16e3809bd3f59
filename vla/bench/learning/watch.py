"""A training as seen from between its steps: their seconds, and the held-out losses on the way."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vla.bench.learning.curve import Point
from vla.errors import ConfigError
from vla.train.loop import train
from vla.train.recipe import Recipe
from vla.train.setup.run import TrainingSetup, set_up
from vla.types import Batch

HELD_OUT_DRAWS = 8
"""Noise draws of every held-out frame: the same ones at every look, in every run."""

WATCHED = ("train.open_loop_every=1", "train.validate_every=null", "train.save_every=1000000000")
"""Overrides that let a `Watch` see every step, and nothing else come between two of them."""


class Watch:
    """A hook of `vla.train.loop.train`, called after every step, during which its clock stands still.

    So the seconds are those of steps: batches, passes, optimiser, records. They count from the end of the
    first step, which is left out with all that precedes it, as are the looks at held-out frames and the
    saving of the policy.

    Args:
        process: Read the process' own time instead of the wall clock.
        held_out: Batches to look at; none where the losses do not matter.
        every: Steps between two looks.
        last: The step to look at in any case.
    """

    def __init__(self, process: bool, held_out: Sequence[Batch] = (), every: int = 1, last: int = 1) -> None:
        self._now = time.process_time if process else time.perf_counter
        self._held_out, self._every, self._last = held_out, every, last
        self._since: float | None = None
        self._step = 0
        self.step_seconds: list[float] = []
        self.points: list[Point] = []

    def __call__(self, policy: Any, job: TrainingSetup) -> Mapping[str, float]:
        """Note the step that has just ended; return what to record of it."""
        if self._since is not None:
            self.step_seconds.append(self._now() - self._since)
        self._step += 1
        losses: dict[str, float] = {}
        if self._held_out and (self._step % self._every == 0 or self._step == self._last):
            losses = held_out_losses(policy, self._held_out)
            self.points.append(Point(self._step, sum(self.step_seconds), losses))
        self._since = self._now()
        return losses


@torch.no_grad()
def held_out_losses(policy: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """Return the mean "held_out_loss" and "held_out_action_loss", with noise that is always the same."""
    found = []
    for number, batch in enumerate(batches):
        output = policy(
            **{name: tensor.to(policy.device) for name, tensor in batch.items()},
            draws_per_observation=HELD_OUT_DRAWS,
            generator=torch.Generator(policy.device).manual_seed(number),
        )
        found.append([output.loss.item(), output.action_loss.item()])
    loss, action_loss = torch.tensor(found, dtype=torch.float64).mean(dim=0).tolist()
    return {"held_out_loss": loss, "held_out_action_loss": action_loss}


def held_out_batches(recipe: Recipe) -> list[Batch]:
    """Return all held-out batches of a recipe, in order.

    Raises:
        ConfigError: The dataset is too small for any.
    """
    loader = set_up(recipe, None, rank=0, processes=1).validation
    if loader is None:
        raise ConfigError(f"{recipe.data.path} has too few episodes to hold one out.")
    return [batch for _, (batch, _) in zip(range(loader.batches_per_epoch), loader, strict=False)]


def train_watched(recipe: Recipe, watch: Watch) -> None:
    """Run a recipe to its end under the eyes of `watch`.

    Raises:
        KeyboardInterrupt: A signal ended it early.
        VlaError: See `vla.train.loop.train`.
    """
    if train(recipe, open_loop=watch, progress=False).stopped_by_signal:
        raise KeyboardInterrupt
