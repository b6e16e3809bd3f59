"""`vla/PushT-v0`: push a T onto its place, seen from above (Diffusion Policy's task, package gym-pusht)."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vla.errors import ConfigError
from vla.eval.envs.simulator import Observation, Simulator, chosen, extra
from vla.interface import RobotInterface, VectorInterface
from vla.types import IMAGE_PREFIX, STATE_KEY

INSTRUCTION = "push the T-shaped block onto the T-shaped target"
"""As LeRobot's recordings of it say."""

FPS, STEP_LIMIT, TABLE = 10, 300, 512.0

_POSITION = VectorInterface(("x", "y"), ("px", "px"), (0.0, 0.0), (TABLE, TABLE))


class PushTEnv(Simulator):
    """A round finger that pushes a T.

    Observation: `observation.images.image` uint8 `[size, size, 3]`; `observation.state` float32 `[2]`, where
    the finger is, in units of a table of 512 x 512. Action: float32 `[2]`, where it is to go.

    The task is done where at least 95 % of the target is covered; an episode is cut off after 300 steps, as
    published results have it. `info` holds `success`, `coverage` now and `most_covered` so far: papers report
    the mean of the latter as well, over 0.95, at most 1.

    Args:
        size: Width and height of the image, pixels.
        render_mode: None or "rgb_array".
        step_limit: Steps after which an episode is cut off.

    Raises:
        ConfigError: A number is out of its range.
        MissingDependencyError: `gym-pusht` is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012 (gymnasium's own)
    robot_type = "pusht"

    def __init__(self, size: int = 96, render_mode: str | None = None, step_limit: int = STEP_LIMIT) -> None:
        if not 16 <= size <= 512 or step_limit < 1:
            raise ConfigError(
                f"size must lie in 16 to 512 and step_limit be at least 1, got {size} and {step_limit}."
            )
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # it draws in memory
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        with extra("pusht"):
            from gym_pusht.envs.pusht import PushTEnv as Pushed
        self.render_mode, self.step_limit = render_mode, step_limit
        self.interface = RobotInterface({"image": (size, size)}, _POSITION, _POSITION, FPS)
        self.observation_space, self.action_space = self.spaces_of_interface()
        self._env: Any = Pushed("pixels_agent_pos", observation_width=size, observation_height=size,
                           visualization_width=240, visualization_height=240)  # fmt: skip

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; there are no options."""
        super().reset(seed=seed)
        chosen(options, {}, self.name)
        # The package draws from a source of its own, which only a seed fixes.
        seen, info = self._env.reset(seed=int(self.np_random.integers(2**31)) if seed is None else seed)
        self._steps, self._most = 0, 0.0
        return _observation(seen), {**info, "success": False, "coverage": 0.0, "most_covered": 0.0}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the finger towards a place.

        Raises:
            ShapeError: `action` is not two finite numbers.
        """
        seen, reward, done, _, info = self._env.step(np.clip(self.action(action), 0.0, TABLE))
        self._steps += 1
        self._most = max(self._most, float(info["coverage"]))
        said = {**info, "success": bool(info["is_success"]), "most_covered": self._most}
        truncated = not done and self._steps >= self.step_limit
        return _observation(seen), float(reward), bool(done), truncated, said

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the image, uint8 `[240, 240, 3]`; None without a mode."""
        return self._env.render() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close what draws."""
        self._env.close()


def _observation(seen: Mapping[str, Any]) -> Observation:
    return {
        f"{IMAGE_PREFIX}image": np.ascontiguousarray(seen["pixels"]),
        STATE_KEY: np.asarray(seen["agent_pos"], np.float32),
        "task": INSTRUCTION,
    }
