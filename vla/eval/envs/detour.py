"""`vla/Detour-v0`: reach the target without touching the cup that stands right in front of the gripper.

Both ways round the cup are equally good, and it is so near that the choice is made within the first few
steps. A policy that predicts the mean of both ways drives into the cup; a policy that can represent
two ways at once picks one. The instruction either names the side or leaves it open.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from vla.errors import ConfigError, ShapeError, did_you_mean
from vla.eval.envs import detour_image as image
from vla.eval.envs.detour_embodiment import FIRST, Embodiment, embodiment_called
from vla.eval.envs.detour_layout import (
    MAX_STEP,
    SUCCESS_DISTANCE,
    DetourExpert,
    Layout,
    Side,
    draw_layout,
    touches_cup,
)
from vla.eval.envs.randomisation import Randomisation, Scenery
from vla.eval.envs.simulator import Simulator
from vla.interface import RobotInterface, VectorInterface
from vla.types import IMAGE_PREFIX, STATE_KEY

PASS_LEFT = "pass the cup on the left"
PASS_RIGHT = "pass the cup on the right"
REACH = "reach the target"
INSTRUCTIONS: dict[Side | None, str] = {"left": PASS_LEFT, "right": PASS_RIGHT, None: REACH}
"""Instruction by stated side; None leaves the side open."""

CAMERA = f"{IMAGE_PREFIX}top"
STATE = STATE_KEY
STEP_LIMIT = 50
"""Steps after which an episode is cut off: twice the expert's."""

__all__ = [
    "CAMERA",
    "INSTRUCTIONS",
    "MAX_STEP",
    "PASS_LEFT",
    "PASS_RIGHT",
    "REACH",
    "STATE",
    "STEP_LIMIT",
    "DetourEnv",
    "DetourExpert",
    "Layout",
]


class DetourEnv(Simulator):
    """A gripper, a cup in its way and a target on a table seen from above.

    Observation: `observation.images.top` uint8 `[size, size, 3]`; `observation.state` float32 `[2]`, the
    gripper's centre; `task`, the instruction. Action: float32 `[2]`, displacement (of an embodiment that is
    `absolute`, the position to move to), shortened to `MAX_STEP` where longer; the gripper's centre stays on
    the table. The first embodiment measures both in table units;
    `Embodiment` describes how others differ, and distances and times of a step scale with its frequency.

    An episode ends with the target reached (reward 1) or the cup touched, and is cut off after
    `STEP_LIMIT` steps. `info` holds `success`, `collided`, `side_passed` ("left", "right" or None so far),
    `stated_side`, `instruction`, and, in table units, the centres `position` (the gripper's), `cup` and
    `target`.

    `reset(options={"side": "left" | "right" | None})` chooses the instruction; the layout depends on the
    seed alone.

    Args:
        size: Width and height of the observed image, pixels.
        render_mode: None or "rgb_array".
        render_size: Width and height of `render()`'s image, pixels.
        embodiment: The robot, or its name: "first", "second", "fast" or "fast_absolute".
        randomise: Ranges by name, see `Randomisation`.

    Raises:
        ConfigError: A size below 16 pixels, an unknown render mode, or an unknown embodiment.
    """

    robot_type = "detour"
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's own)

    def __init__(
        self,
        size: int = 48,
        render_mode: str | None = None,
        render_size: int = 256,
        embodiment: Embodiment | str = FIRST,
        randomise: Mapping[str, Any] | Randomisation | None = None,
    ) -> None:
        self._randomisation = Randomisation.of(randomise)
        if min(size, render_size) < 16:
            raise ConfigError(
                f"size and render_size must be at least 16 pixels, got {size} and {render_size}."
            )
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"render_mode must be None or 'rgb_array', got {render_mode!r}.")
        self.size = size
        self.render_mode = render_mode
        self.render_size = render_size
        robot = embodiment_called(embodiment) if isinstance(embodiment, str) else embodiment
        self.embodiment = robot
        self.metadata = {**self.metadata, "render_fps": robot.fps}
        corners = np.stack(
            [robot.to_robot(np.array(corner)) for corner in itertools.product((0, 1), repeat=2)]
        )
        longest = np.float32(robot.length(MAX_STEP) / robot.unit)
        letters = "".join(sorted(set("".join(INSTRUCTIONS.values()))))
        self.observation_space = spaces.Dict(
            {
                CAMERA: spaces.Box(0, 255, (size, size, 3), np.uint8),
                STATE: spaces.Box(corners.min(axis=0), corners.max(axis=0), dtype=np.float32),
                "task": spaces.Text(max_length=64, charset=letters),
            }
        )
        limits = (corners.min(axis=0), corners.max(axis=0)) if robot.absolute else (-longest, longest)
        self.action_space = spaces.Box(*limits, (2,), np.float32)
        self.interface = RobotInterface(
            {"top": (size, size)},
            _vector(("x", "y"), corners.min(axis=0), corners.max(axis=0)),
            _vector(
                ("x", "y") if robot.absolute else ("dx", "dy"), self.action_space.low, self.action_space.high
            ),
            robot.fps,
        )
        sizes = {size} if render_mode is None else {size, render_size}
        self._tables = {pixels: image.draw_table(pixels, robot.camera) for pixels in sizes}
        self._layout: Layout | None = None

    @property
    def layout(self) -> Layout:
        """Where things stood at the start of the episode."""
        if self._layout is None:
            raise gymnasium.error.ResetNeeded("Call reset() before anything else.")
        return self._layout

    @property
    def position(self) -> np.ndarray:
        """The gripper's centre `[2]`, float64, table units."""
        return self._position.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; `options={"side": ...}` states the side, see the class.

        Raises:
            ConfigError: An unknown option or side.
        """
        super().reset(seed=seed)
        self._stated_side: Side | None = _stated_side(options or {})
        self._layout = draw_layout(self.np_random)
        self._appear(self._randomisation.draw(int(self.np_random.integers(2**31))))
        self._position = self._layout.gripper
        self._scenes: dict[int, np.ndarray] = {}
        self._steps = 0
        self._success = self._collided = False
        self._side_passed: Side | None = None
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move the gripper by `action`.

        Raises:
            ShapeError: `action` is not two finite numbers.
        """
        layout = self.layout
        before = self._position
        after = np.clip(before + self._displacement(action), 0.0, 1.0)
        self._position = after
        self._steps += 1
        self._collided = touches_cup(layout, before, after)
        if before[1] < layout.cup[1] <= after[1]:
            share = (layout.cup[1] - before[1]) / (after[1] - before[1])
            self._side_passed = (
                "left" if before[0] + share * (after[0] - before[0]) < layout.cup[0] else "right"
            )
        distance = float(np.hypot(*(after - layout.target)))
        self._success = not self._collided and distance <= SUCCESS_DISTANCE
        terminated = self._success or self._collided
        truncated = not terminated and self._steps >= self.embodiment.steps(STEP_LIMIT)
        return self._observation(), float(self._success), terminated, truncated, self._info()

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the image, uint8 `[render_size, render_size, 3]`, or None without a render mode."""
        return self._frame(self.render_size) if self.render_mode == "rgb_array" else None

    def expert(self, random: np.random.Generator) -> "Driver":
        """Return the scripted expert for this episode; where the side is open, it takes either by chance."""
        side: Side = self._stated_side or ("left", "right")[int(random.integers(2))]
        return Driver(self, self.embodiment.expert(side))

    def _frame(self, size: int) -> np.ndarray:
        if size not in self._scenes:
            self._scenes[size] = image.draw_scene(self._seen[size], self.layout, self._camera)
        frame = image.draw_gripper(self._scenes[size], self._position, self._camera)
        if self._tint is None:
            return frame
        return np.clip(frame * self._tint + 0.5, 0, 255).astype(np.uint8)

    def _appear(self, scenery: Scenery) -> None:
        """Look so in this episode."""
        camera = self.embodiment.camera
        self._camera, self._tint = camera, None
        if not self._randomisation.is_none:
            centre = (camera.centre[0] + scenery.shift[0], camera.centre[1] + scenery.shift[1])
            self._camera = image.Camera(camera.turn + scenery.azimuth, camera.zoom / scenery.distance, centre)
            self._tint = scenery.light * scenery.colours(1)[0]
        self._seen = self._tables
        if self._camera != camera:
            self._seen = {pixels: image.draw_table(pixels, self._camera) for pixels in self._tables}

    def _displacement(self, action: np.ndarray) -> np.ndarray:
        """Return how far `action` moves the gripper, float64 `[2]`, table units."""
        move = np.asarray(action, dtype=np.float64)
        if move.shape != (2,) or not np.isfinite(move).all():
            raise ShapeError(
                f"Detour's action must be two finite numbers (dx, dy), got {np.array2string(move)}."
            )
        move = self.embodiment.displacement(move, self._position)
        length, longest = float(np.hypot(*move)), self.embodiment.length(MAX_STEP)
        return move * (longest / length) if length > longest else move

    def _observation(self) -> dict[str, Any]:
        return {
            CAMERA: self._frame(self.size),
            STATE: self.embodiment.to_robot(self._position),
            "task": INSTRUCTIONS[self._stated_side],
        }

    def _info(self) -> dict[str, Any]:
        return {
            "success": self._success,
            "collided": self._collided,
            "side_passed": self._side_passed,
            "stated_side": self._stated_side,
            "instruction": INSTRUCTIONS[self._stated_side],
            "position": self._position.astype(np.float32),
            "cup": self.layout.cup.copy(),
            "target": self.layout.target.copy(),
        }


class Driver:
    """The scripted expert at the robot of an environment."""

    def __init__(self, env: DetourEnv, expert: DetourExpert) -> None:
        self._env, self._expert = env, expert

    def act(self) -> np.ndarray:
        """Return the next action, float32 `[2]`, robot units."""
        position = self._env.position
        return self._env.embodiment.action(self._expert.act(self._env.layout, position), position)


def _vector(names: tuple[str, ...], low: np.ndarray, high: np.ndarray) -> VectorInterface:
    return VectorInterface(names, low=tuple(low.tolist()), high=tuple(high.tolist()))


def _stated_side(options: dict[str, Any]) -> Side | None:
    """Return the side that `options` states, checked."""
    for name in options:
        if name != "side":
            raise ConfigError(f"Detour has no reset option '{name}'.{did_you_mean(name, ['side'])}")
    side = options.get("side")
    if side not in INSTRUCTIONS:
        raise ConfigError(f"side must be 'left', 'right' or None, got {side!r}.")
    return side
