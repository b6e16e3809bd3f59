"""The robots of Detour: one task, and how it differs from robot to robot.

A robot moves and measures along its own axes and in its own unit, has a camera of its own, and is commanded
at its own frequency. Where things stand, what counts as success, and how fast the expert moves do not depend
on it.
"""

from dataclasses import dataclass

import numpy as np

from vla.errors import ConfigError, did_you_mean
from vla.eval.envs.detour_image import ABOVE, Camera
from vla.eval.envs.detour_layout import DetourExpert, Side

FPS = 10
"""Control frequency of the first robot, in whose steps all durations are given."""


@dataclass(frozen=True)
class Embodiment:
    """A robot.

    Args:
        unit: Length of its unit of position and action, in table units.
        x_axis: Where its x points on the table: (1, 0) is to the right, (0, 1) away.
        y_axis: Where its y points; at a right angle to x.
        camera: How it sees the table.
        fps: Actions and observations per second.
        absolute: Whether an action is the position to move to, instead of a displacement.

    Raises:
        ConfigError: The axes are not of length 1 at a right angle, or a number is not above 0.
    """

    unit: float = 1.0
    x_axis: tuple[float, float] = (1.0, 0.0)
    y_axis: tuple[float, float] = (0.0, 1.0)
    camera: Camera = ABOVE
    fps: int = FPS
    absolute: bool = False

    def __post_init__(self) -> None:
        if min(self.unit, self.camera.zoom, self.fps) <= 0:
            raise ConfigError(
                "A robot's unit, zoom and fps must be above 0, "
                f"got {self.unit}, {self.camera.zoom} and {self.fps}."
            )
        if not np.allclose(self._axes.T @ self._axes, np.eye(2)):
            raise ConfigError(
                "A robot's axes must be of length 1 and at a right angle, "
                f"got x {self.x_axis} and y {self.y_axis}."
            )

    def to_table(self, vector: np.ndarray) -> np.ndarray:
        """Return the robot's displacement or position `[2]` in table units, float64."""
        return self.unit * (self._axes @ vector)

    def to_robot(self, vector: np.ndarray) -> np.ndarray:
        """Return a displacement or position `[2]` on the table in the robot's units, float32."""
        return (self._axes.T @ vector / self.unit).astype(np.float32)

    def action(self, displacement: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Return the action that moves the gripper so, in the robot's units, float32 `[2]`.

        Args:
            displacement: `[2]`, table units.
            position: Where the gripper is, `[2]`, table units.
        """
        return self.to_robot(position + displacement if self.absolute else displacement)

    def displacement(self, action: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Return how far an action is to move the gripper from `position`, float64 `[2]`, table units."""
        moved = self.to_table(action)
        return moved - position if self.absolute else moved

    def steps(self, steps: int) -> int:
        """Return how many steps of this robot take as long as `steps` of the first one."""
        return round(steps * self.fps / FPS)

    def length(self, length: float) -> float:
        """Return how far it gets in one step where the first robot gets `length`."""
        return length * (FPS / self.fps)

    def expert(self, side: Side) -> DetourExpert:
        """Return the expert for this robot's frequency; it uses table units (see `to_robot`)."""
        return DetourExpert(side, speed=self.length(DetourExpert.speed))

    @property
    def _axes(self) -> np.ndarray:
        return np.array([self.x_axis, self.y_axis]).T


FIRST = Embodiment()
SECOND = Embodiment(
    unit=1 / 400,
    x_axis=(0.0, 1.0),
    y_axis=(-1.0, 0.0),
    camera=Camera(turn=8.0),
    fps=5,
)
"""Another make of robot: it measures in millimetres (the table is 400 wide), x away from it and y to the
left, is commanded half as often, and its camera is turned by 8 degrees."""

FAST = Embodiment(fps=20)
"""The first robot, commanded twice as often."""

FAST_ABSOLUTE = Embodiment(fps=20, absolute=True)
"""The same, told where to go instead of how far."""

EMBODIMENTS = {"first": FIRST, "second": SECOND, "fast": FAST, "fast_absolute": FAST_ABSOLUTE}


def embodiment_called(name: str) -> Embodiment:
    """Return the robot of that name.

    Raises:
        ConfigError: There is no such robot.
    """
    if name not in EMBODIMENTS:
        raise ConfigError(
            f"Detour has no embodiment '{name}', only {', '.join(EMBODIMENTS)}."
            f"{did_you_mean(name, EMBODIMENTS)}"
        )
    return EMBODIMENTS[name]
