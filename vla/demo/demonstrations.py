"""Demonstrations of `vla/Detour-v0` by the scripted expert, as a LeRobot v3.0 dataset."""

from pathlib import Path

import numpy as np

from vla.data.writing.writer import LeRobotWriter
from vla.eval.envs.detour import CAMERA, STATE, DetourEnv, DetourExpert
from vla.eval.envs.detour_embodiment import FIRST, Embodiment
from vla.eval.envs.detour_layout import Side
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
) -> int:
    """Record the expert; return the number of frames.

    Each frame's `response` is the side that its episode takes, which the policy learns to predict.

    Args:
        folder: Destination; must not exist.
        episodes: Episodes to record; half of them leave the side open, a quarter states each.
        seed: Seed of the layouts (`seed + episode`), and of the sides where they are open.
        progress: Called with (episodes done, episodes in all).
        embodiment: The robot that the expert moves.
    """
    # Left and right equally often, in an order independent of the layouts.
    open_sides = iter(np.random.default_rng(seed).permutation(np.arange(-(-episodes // 2)) % 2))
    env = DetourEnv(embodiment=embodiment)
    frames = 0
    with LeRobotWriter(
        folder,
        fps=env.metadata["render_fps"],
        cameras={CAMERA: (env.size, env.size)},
        state_names=["x", "y"],
        action_names=["dx", "dy"],
        robot_type="detour",
        extra_features={"response": "string"},
    ) as writer:
        for episode in range(episodes):
            stated = STATED[episode % len(STATED)]
            side = stated or SIDES[next(open_sides)]
            frames += _record_episode(env, writer, embodiment.expert(side), seed + episode, stated)
            if progress is not None:
                progress(episode + 1, episodes)
    return frames


def _record_episode(
    env: DetourEnv, writer: LeRobotWriter, expert: DetourExpert, seed: int, stated: Side | None
) -> int:
    observation, info = env.reset(seed=seed, options={"side": stated})
    done, frames = False, 0
    while not done:
        action = env.embodiment.to_robot(expert.act(env.layout, env.position))
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
