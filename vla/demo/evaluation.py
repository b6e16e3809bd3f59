"""Evaluate the demo's policies on layouts that were not demonstrated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla.errors import ConfigError
from vla.eval.envs.detour import CAMERA, STATE, DetourEnv
from vla.eval.envs.detour_embodiment import FIRST, Embodiment
from vla.eval.envs.detour_figures import Fan
from vla.eval.envs.detour_report import DetourReport
from vla.eval.outcome import EpisodeResult
from vla.eval.rollout import BatchPolicy, rollout
from vla.policies.auto import load, load_for_episodes
from vla.types import ProgressCallback

EXECUTE = 8
"""Actions that the first robot executes of each chunk of 16; another robot, as many as take as long."""
FILMED = 6

Episodes = dict[str, list[EpisodeResult]]
"""Episodes by condition: "unstated", "left", "right", as in `DetourReport.conditions`."""


def evaluate(
    checkpoint: Path,
    seeds: Sequence[int],
    noise_seed: int,
    progress: ProgressCallback | None = None,
    embodiment: Embodiment = FIRST,
    level: str | None = None,
) -> tuple[Episodes, str]:
    """Run a policy on the same layouts under each of the three instructions.

    Args:
        checkpoint: Policy folder.
        seeds: Layouts.
        noise_seed: Seed of the policy's noise.
        progress: Called with (episodes done, episodes in all).
        embodiment: The robot.
        level: Level of sampling; the highest that pays where not given.

    Returns:
        The episodes, and the level that sampled them.
    """
    policy = load_for_episodes(checkpoint, level)
    conditions = DetourReport.conditions
    total, done = len(seeds) * len(conditions), 0
    results: Episodes = {}
    for name, options in conditions.items():

        def report(finished: int, _: int, done: int = done) -> None:
            if progress is not None:
                progress(done + finished, total)

        results[name] = rollout(
            lambda: DetourEnv(render_mode="rgb_array", embodiment=embodiment),
            policy,
            seeds,
            options,
            execute=embodiment.steps(EXECUTE),
            batch_size=min(50, len(seeds)),
            generator=torch.Generator().manual_seed(noise_seed),
            text=True,
            film=FILMED if name == "unstated" else 0,
            progress=report,
        )
        done += len(seeds)
    return results, policy.last_level


def check_acts(checkpoint: Path, embodiment: Embodiment) -> None:
    """Let a policy predict one chunk for a robot, as `evaluate` will.

    Raises:
        ConfigError: Its chunks are shorter than what is executed of them.
        VlaError: It cannot read what the robot observes, or has no pipeline.
    """
    observation, _ = DetourEnv(embodiment=embodiment).reset(seed=0)
    (answer,) = load(checkpoint).infer_batch([observation], text=True)
    steps, horizon = embodiment.steps(EXECUTE), len(answer["actions"])
    if horizon < steps:
        raise ConfigError(f"Its chunks have {horizon} steps, and {steps} of each are to be executed.")


def share_said(episodes: Sequence[EpisodeResult]) -> float | None:
    """Return the share of episodes in which the policy, next to the cup, names the side that it passes.

    Next to the cup means at its second prediction, after `EXECUTE` steps. Before, the side may be
    open; later, near the target, a single image no longer shows it. None where no episode got so far.
    """
    asked = [one for one in episodes if len(one.texts) > 1]
    if not asked:
        return None
    return float(np.mean([one.texts[1].strip() == one.info["side_passed"] for one in asked]))


def fans(
    checkpoints: Mapping[str, Path],
    seed: int,
    noise_seed: int,
    chunks: int = 48,
    level: str | None = None,
) -> list[Fan]:
    """Sample many chunks at the decision point of one layout, with a side left open."""
    env = DetourEnv()
    observation, _ = env.reset(seed=seed, options={"side": None})
    layout = env.layout
    return [
        Fan(
            f"{name}: {chunks} chunks",
            layout.gripper,
            layout.cup,
            layout.target,
            _sample(load_for_episodes(checkpoint, level), observation, chunks, noise_seed),
            EXECUTE,
        )
        for name, checkpoint in checkpoints.items()
    ]


def _sample(policy: BatchPolicy, observation: Mapping[str, Any], chunks: int, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    seen = {key: observation[key] for key in (CAMERA, STATE, "task")}
    answers = policy.infer_batch([seen] * chunks, generator=generator)
    return np.stack([answer["actions"] for answer in answers])
