"""Episodes of Detour in which chunks take time: each robot with a strategy of its own, all in one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vla_client.execution import Lockstep

from vla.eval.envs.detour import DetourEnv
from vla.eval.envs.detour_embodiment import Embodiment
from vla.types import ProgressCallback

MakeStrategy = Callable[[Any], Any]
"""Makes a strategy of `vla_client.execution` on an engine."""


@dataclass(frozen=True)
class Trace:
    """One episode.

    Attributes:
        success: Whether the target was reached.
        collided: Whether the cup was touched.
        actions: What was executed, `[t, d]`.
        sources: Control step at which the chunk of each action begins, `[t]`; -1 for a hold action.
    """

    success: bool
    collided: bool
    actions: np.ndarray
    sources: np.ndarray


def run_episodes(
    policy: Any,
    make_strategy: MakeStrategy,
    robot: Embodiment,
    seeds: Sequence[int],
    *,
    latency: int,
    batch: int,
    noise_seed: int,
    progress: ProgressCallback | None = None,
) -> list[Trace]:
    """Run one episode for each seed, the instruction leaving the side open.

    The noise of an episode's chunks is drawn from its own seed, so that strategies that ask alike are
    answered alike.

    Args:
        policy: A `RobotPolicy`.
        make_strategy: Makes the strategy of an episode.
        robot: The robot.
        seeds: Layouts.
        latency: Control steps that a chunk takes.
        batch: Episodes at once.
        noise_seed: Together with the layout's, the seed of its noise.
        progress: Called with (episodes done, episodes in all).
    """
    traces: list[Trace] = []
    for start in range(0, len(seeds), batch):
        lockstep = Lockstep(policy, batch)
        group = [
            Episode(seed, robot, make_strategy(lockstep.engine(latency, _noise(noise_seed, seed))))
            for seed in seeds[start : start + batch]
        ]
        live = group
        while live:
            for episode in live:
                episode.strategy.prepare(episode.observation)
            for episode in live:
                episode.step()
            live = [episode for episode in live if not episode.done]
        traces += [episode.trace() for episode in group]
        if progress is not None:
            progress(len(traces), len(seeds))
    return traces


def _noise(noise_seed: int, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(noise_seed * 1_000_003 + seed)


class Episode:
    """A robot on its way, the instruction leaving the side open.

    Args:
        seed: The layout's.
        robot: The robot.
        strategy: A strategy of `vla_client.execution`.
    """

    def __init__(self, seed: int, robot: Embodiment, strategy: Any) -> None:
        self.strategy = strategy
        self.done = False
        self._env = DetourEnv(embodiment=robot)
        self.observation, self._info = self._env.reset(seed=seed, options={"side": None})
        self._actions: list[np.ndarray] = []
        self._sources: list[int] = []

    def step(self) -> None:
        """Ask the strategy, and execute its action."""
        self.execute(self.strategy.act(self.observation))

    def execute(self, action: np.ndarray) -> None:
        """Let the robot do it, one control step long."""
        self._actions.append(action)
        source = self.strategy.source
        self._sources.append(-1 if source is None else source[0])
        self.observation, _, terminated, truncated, self._info = self._env.step(action)
        self.done = terminated or truncated
        if self.done:
            self.strategy.close()
            self._env.close()

    def trace(self) -> Trace:
        """Return what happened."""
        return Trace(
            bool(self._info["success"]),
            bool(self._info["collided"]),
            np.stack(self._actions),
            np.array(self._sources),
        )
