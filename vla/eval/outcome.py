"""The result of an episode, and statistics over many of them, in any environment."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla.errors import ConfigError

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True)
class EpisodeResult:
    """One finished episode.

    What only one environment knows (a collision, which of several ways was taken) is in `info`; the
    environment's own report reads it there (`vla.eval.envs.report.EnvironmentReport`).

    Args:
        seed: The environment's seed: episodes of the same seed have the same layout.
        success: Whether the task was done.
        steps: Actions executed.
        trajectory: `[steps + 1, d]`, the state before the first action and after each one; `position` from
            the environment's info instead where it has one.
        texts: The policy's text at each prediction; empty where not asked for.
        decisions: Steps at which a chunk was predicted.
        frames: uint8 `[steps + 1, h, w, 3]` as rendered, where filming was asked for.
        info: The environment's last `info`.
    """

    seed: int
    success: bool
    steps: int
    trajectory: np.ndarray
    texts: tuple[str, ...] = ()
    decisions: tuple[int, ...] = ()
    frames: np.ndarray | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """Counts over episodes of one policy under one condition; rates of success are derived, never stored.

    Args:
        episodes: How many were run.
        successes: Task done.
        mean_steps: Mean number of steps of the successful episodes; NaN without one.
        extra: What the environment's own report counts besides, by name, as JSON values.
    """

    episodes: int
    successes: int
    mean_steps: float
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def success_rate(self) -> float:
        """Share of episodes that did the task."""
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the success rate."""
        return success_interval(self.successes, self.episodes)

    def to_json(self) -> dict[str, Any]:
        """Return counts and rates as JSON values (NaN becomes None), the environment's own among them."""
        return {
            "episodes": self.episodes,
            "successes": self.successes,
            "mean_steps": None if math.isnan(self.mean_steps) else self.mean_steps,
            "success_rate": self.success_rate,
            "success_interval": list(self.interval),
            **self.extra,
        }


def summarize(results: Sequence[EpisodeResult], extra: Mapping[str, Any] | None = None) -> Summary:
    """Count over episodes; `EnvironmentReport.summarize` adds to this what its environment counts.

    Args:
        results: The episodes.
        extra: Stored as `Summary.extra`.

    Raises:
        ConfigError: There are no episodes.
    """
    if not results:
        raise ConfigError("There are no episodes to summarise; run at least one.")
    done = [result for result in results if result.success]
    return Summary(
        episodes=len(results),
        successes=len(done),
        mean_steps=float(np.mean([result.steps for result in done])) if done else math.nan,
        extra=extra or {},
    )


def success_interval(successes: int, episodes: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's interval for a success rate, within [0, 1].

    Unlike the normal approximation it holds near 0 and 1: 100 successes of 100 give (0.963, 1.0).

    Args:
        successes: Number of successes.
        episodes: Number of episodes, at least 1.
        z: Normal quantile; the default gives 95 %.

    Raises:
        ConfigError: The counts are impossible.
    """
    if episodes < 1 or not 0 <= successes <= episodes:
        raise ConfigError(f"{successes} successes of {episodes} episodes are impossible.")
    share = successes / episodes
    centre = share + z * z / (2 * episodes)
    spread = z * math.sqrt(share * (1 - share) / episodes + (z / (2 * episodes)) ** 2)
    scale = 1 + z * z / episodes
    low, high = (centre - spread) / scale, (centre + spread) / scale
    # At the ends the formula is exact; rounding must not move them.
    return (0.0 if successes == 0 else low, 1.0 if successes == episodes else high)
