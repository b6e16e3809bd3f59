"""What came of an episode, and what may be concluded from many of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vla.errors import ConfigError

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True)
class EpisodeResult:
    """One finished episode.

    `success`, `collided` and the sides are what the environment's last `info` says (see
    `DetourEnv`); an environment that knows no cups and sides leaves False and None.

    Args:
        seed: The environment's seed: episodes of the same seed have the same layout.
        success: Whether the task was done.
        collided: Whether it ended by touching what must not be touched.
        side_passed: "left", "right", or None where neither was passed.
        stated_side: The side that the instruction stated, or None.
        steps: Actions executed.
        trajectory: `[steps + 1, d]`, the state before the first action and after each one; `position` of the
            environment's info in its place where it is there.
        texts: What the policy said at each prediction; empty where it was not asked.
        decisions: Steps at which a chunk was predicted.
        frames: uint8 `[steps + 1, h, w, 3]` as rendered, where filming was asked for.
        info: The environment's last `info`.
    """

    seed: int
    success: bool
    collided: bool
    side_passed: str | None
    stated_side: str | None
    steps: int
    trajectory: np.ndarray
    texts: tuple[str, ...] = ()
    decisions: tuple[int, ...] = ()
    frames: np.ndarray | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """Counts over episodes of one policy under one condition; rates are derived, never stored.

    Args:
        episodes: How many were run.
        successes: Task done.
        collisions: Cup touched.
        left: Cup passed on the left.
        right: Cup passed on the right.
        stated: Episodes whose instruction stated a side.
        followed: Those of them that passed on that side and did the task.
        mean_steps: Mean number of steps of the successful episodes; NaN without one.
    """

    episodes: int
    successes: int
    collisions: int
    left: int
    right: int
    stated: int
    followed: int
    mean_steps: float

    @property
    def success_rate(self) -> float:
        """Share of episodes that did the task."""
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the success rate."""
        return success_interval(self.successes, self.episodes)

    @property
    def followed_rate(self) -> float | None:
        """Share of episodes with a stated side that did the task on it; None without such episodes."""
        return self.followed / self.stated if self.stated else None

    @property
    def left_share(self) -> float | None:
        """Share of the left among the successful passes; None where neither side was passed."""
        return self.left / (self.left + self.right) if self.left + self.right else None

    def to_json(self) -> dict[str, Any]:
        """Return counts and rates as JSON values (NaN becomes None)."""
        values = asdict(self)
        values["mean_steps"] = None if math.isnan(self.mean_steps) else self.mean_steps
        return values | {
            "success_rate": self.success_rate,
            "success_interval": list(self.interval),
            "followed_rate": self.followed_rate,
            "left_share": self.left_share,
        }


def summarize(results: Sequence[EpisodeResult]) -> Summary:
    """Count over episodes.

    A side counts only in a successful episode: a policy that grazes the cup has not chosen a way round it.

    Raises:
        ConfigError: There are no episodes.
    """
    if not results:
        raise ConfigError("There are no episodes to summarise; run at least one.")
    done = [result for result in results if result.success]
    return Summary(
        episodes=len(results),
        successes=len(done),
        collisions=sum(result.collided for result in results),
        left=sum(result.side_passed == "left" for result in done),
        right=sum(result.side_passed == "right" for result in done),
        stated=sum(result.stated_side is not None for result in results),
        followed=sum(
            result.stated_side is not None and result.side_passed == result.stated_side for result in done
        ),
        mean_steps=float(np.mean([result.steps for result in done])) if done else math.nan,
    )


def success_interval(successes: int, episodes: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's interval for a success rate, within [0, 1].

    Unlike the textbook interval it is honest near 0 and 1: 100 successes of 100 give (0.963, 1.0).

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
