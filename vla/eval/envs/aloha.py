"""`vla/AlohaTransferCube-v0` and `vla/AlohaInsertion-v0`: ACT's tasks for two arms (package gym-aloha)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vla.errors import ConfigError, did_you_mean
from vla.eval.envs.simulator import Observation, Simulator, choose_gl, chosen, drawing, extra
from vla.interface import RobotInterface, VectorInterface
from vla.types import IMAGE_PREFIX, STATE_KEY

INSTRUCTIONS = {
    "transfer_cube": "Pick up the cube with the right arm and transfer it to the left arm.",
    "insertion": "Insert the peg into the socket.",
}
"""As LeRobot's recordings of the two tasks say."""

FPS, STEP_LIMIT = 50, 400

_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
_UNITS = ("rad",) * 6 + ("0 closed, 1 open",)
_ARMS = VectorInterface(tuple(f"{arm}_{joint}" for arm in ("left", "right") for joint in _JOINTS), _UNITS * 2)


class AlohaEnv(Simulator):
    """Two ViperX arms.

    Observation: `observation.images.top` uint8 `[480, 640, 3]`; `observation.state` float32 `[14]`: six
    joints (rad) and the gripper (0 to 1) of either arm, the left one first. Action: float32 `[14]`, where the
    joints are to go, in the same units.

    The task is done at the highest of its rewards (4); an episode is cut off after 400 steps, as ACT has it.
    `info` holds `success` and `most_reward`, the stage that it came to.

    Args:
        task: "transfer_cube" or "insertion".
        height: Height of the image, pixels; the policy of a published checkpoint expects 480.
        width: Its width.
        render_mode: None or "rgb_array".
        step_limit: Steps after which an episode is cut off.

    Raises:
        ConfigError: There is no such task, or a number is out of its range.
        MissingDependencyError: `gym-aloha` is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012 (gymnasium's own)
    robot_type = "aloha"

    def __init__(
        self,
        task: str = "transfer_cube",
        height: int = 480,
        width: int = 640,
        render_mode: str | None = None,
        step_limit: int = STEP_LIMIT,
    ) -> None:
        if task not in INSTRUCTIONS:
            raise ConfigError(
                f"task must be one of {', '.join(INSTRUCTIONS)}, got '{task}'."
                f"{did_you_mean(task, INSTRUCTIONS)}"
            )
        if not (16 <= height <= 480 and 16 <= width <= 640) or step_limit < 1:
            raise ConfigError(
                "height and width must lie in 16 to 480 and 16 to 640 pixels and step_limit be at least 1, "
                f"got {height}, {width} and {step_limit}."
            )
        choose_gl()
        with extra("aloha"):
            from gym_aloha.env import AlohaEnv as Arms
        self.task, self.render_mode, self.step_limit = task, render_mode, step_limit
        self.interface = RobotInterface({"top": (height, width)}, _ARMS, _ARMS, FPS)
        self.observation_space, self.action_space = self.spaces_of_interface()
        with drawing():
            self._env = Arms(task, "pixels_agent_pos")
        self._size = (height, width)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; there are no options."""
        super().reset(seed=seed)
        chosen(options, {}, self.name)
        with drawing():
            seen, _ = self._env.reset(seed=int(self.np_random.integers(2**31)) if seed is None else seed)
        self._steps, self._most = 0, 0.0
        return self._observation(seen), {"success": False, "most_reward": 0.0}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the arms.

        Raises:
            ShapeError: `action` is not 14 finite numbers.
        """
        seen, reward, done, _, _ = self._env.step(self.action(action))
        self._steps += 1
        self._most = max(self._most, float(reward or 0.0))
        truncated = not done and self._steps >= self.step_limit
        info = {"success": bool(done), "most_reward": self._most}
        return self._observation(seen), float(reward or 0.0), bool(done), truncated, info

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the view from above, uint8 `[480, 640, 3]`; None without a mode."""
        return self._env.render() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the simulator."""
        self._env.close()

    def _observation(self, seen: Mapping[str, Any]) -> Observation:
        image = np.ascontiguousarray(seen["pixels"]["top"])
        if image.shape[:2] != self._size:
            image = self._env._env.physics.render(*self._size, camera_id="top")
        return {
            f"{IMAGE_PREFIX}top": image,
            STATE_KEY: np.asarray(seen["agent_pos"], np.float32),
            "task": INSTRUCTIONS[self.task],
        }
