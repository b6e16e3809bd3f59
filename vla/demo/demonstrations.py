"""Demonstrations of `vla/Detour-v0` by the scripted expert, as a LeRobot v3.0 dataset."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from vla.data.split import split_episodes
from vla.data.writing.writer import LeRobotWriter
from vla.errors import ConfigError
from vla.eval.envs.detour import CAMERA, STATE, DetourEnv, DetourExpert
from vla.eval.envs.detour_embodiment import FIRST, Embodiment
from vla.eval.envs.detour_layout import Side
from vla.train.recipe import Recipe
from vla.types import ProgressCallback

SIDES: tuple[Side, Side] = ("left", "right")
STATED: tuple[Side | None, ...] = (None, "left", None, "right")
"""What the instruction states, in turn; None leaves the side open, and the expert goes either way."""


def record_demonstrations(
    folder: Path,
    episodes: int,
    seed: int,
    progress: ProgressCallback | None = None,
    embodiment: Embodiment = FIRST,
    pace: tuple[float, float] = (1.0, 1.0),
    clearance: float = DetourExpert.clearance,
) -> int:
    """Record the expert; return the number of frames.

    Each frame's `response` is the side that its episode takes, which the policy learns to predict.

    Args:
        folder: Destination; must not exist.
        episodes: Episodes to record; half of them leave the side open, a quarter states each.
        seed: Seed of the layouts (`seed + episode`), and of the sides where they are open.
        progress: Called with (episodes done, episodes in all).
        embodiment: The robot that the expert moves.
        pace: The expert's speed in an episode over its usual one is drawn from this range; a single image
            does not show it.
        clearance: Free space that the expert keeps between gripper and cup, table units.
    """
    env = DetourEnv(embodiment=embodiment)
    frames = 0
    paces = np.random.default_rng([seed, episodes]).uniform(*pace, episodes)
    with LeRobotWriter(
        folder,
        fps=env.metadata["render_fps"],
        cameras={CAMERA: (env.size, env.size)},
        state_names=["x", "y"],
        action_names=["x", "y"] if embodiment.absolute else ["dx", "dy"],
        robot_type="detour",
        extra_features={"response": "string"},
    ) as writer:
        for episode, (stated, side) in enumerate(_sides(episodes, seed)):
            expert = replace(embodiment.expert(side), clearance=clearance)
            if pace != (1.0, 1.0):
                expert = replace(expert, speed=expert.speed * float(paces[episode]))
            frames += _record_episode(env, writer, expert, seed + episode, stated)
            if progress is not None:
                progress(episode + 1, episodes)
    return frames


def check_batch(recipe: Recipe, episodes: int, seed: int, embodiment: Embodiment = FIRST) -> None:
    """Check that the training episodes, once recorded, will have as many frames as a batch has samples.

    Args:
        recipe: What they are recorded for.
        episodes: Episodes to record, held-out ones included.
        seed: Seed of the layouts.
        embodiment: The robot.

    Raises:
        ConfigError: They will not; says how many episodes would.
    """
    wanted, given = recipe.train.batch_size, episodes
    while (found := _training_frames(recipe, episodes, seed, embodiment)) < wanted:
        if episodes == given:
            too_few = found
        episodes += 1
    if episodes > given:
        raise ConfigError(
            f"{given} demonstrations have {too_few} frames to train on, fewer than one batch of {wanted}: "
            f"record at least {episodes} (--demonstrations)."
        )


def _training_frames(recipe: Recipe, episodes: int, seed: int, embodiment: Embodiment) -> int:
    """Return how many frames the training episodes will have; what is more than a batch is not counted."""
    training, _ = split_episodes(episodes, recipe.data.validation_fraction, recipe.train.seed)
    env, frames = DetourEnv(size=16, embodiment=embodiment), 0
    for episode, (stated, side) in enumerate(_sides(episodes, seed)):
        if frames >= recipe.train.batch_size:
            break
        if episode in training:
            env.reset(seed=seed + episode, options={"side": stated})
            expert, done = embodiment.expert(side), False
            while not done:
                action = embodiment.action(expert.act(env.layout, env.position), env.position)
                _, _, terminated, truncated, _ = env.step(action)
                done, frames = terminated or truncated, frames + 1
    return frames


def _sides(episodes: int, seed: int) -> Iterator[tuple[Side | None, Side]]:
    """Yield what each episode's instruction states, and the side that the expert takes."""
    # Left and right equally often, in an order independent of the layouts.
    open_sides = iter(np.random.default_rng(seed).permutation(np.arange(-(-episodes // 2)) % 2))
    for episode in range(episodes):
        stated = STATED[episode % len(STATED)]
        yield stated, stated or SIDES[next(open_sides)]


def _record_episode(
    env: DetourEnv, writer: LeRobotWriter, expert: DetourExpert, seed: int, stated: Side | None
) -> int:
    observation, info = env.reset(seed=seed, options={"side": stated})
    done, frames = False, 0
    while not done:
        action = env.embodiment.action(expert.act(env.layout, env.position), env.position)
        writer.add_frame(
            {
                CAMERA: observation[CAMERA],
                STATE: observation[STATE],
                "action": action,
                "response": expert.side,
            }
        )
        frames += 1
        observation, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
    assert info["success"], f"the expert failed on layout {seed}"
    writer.save_episode(info["instruction"])
    return frames
