"""The layout of the table of `vla/Detour-v0`, and the scripted expert.

Table units: x runs from 0 (left) to 1 (right), y from 0 (near, at the bottom of the image) to 1 (far).
The gripper starts near, the cup stands just in front of it, the target lies far behind the cup.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Side = Literal["left", "right"]

GRIPPER_RADIUS = 0.05
CUP_RADIUS = 0.07
TARGET_RADIUS = 0.08
TOUCH_DISTANCE = GRIPPER_RADIUS + CUP_RADIUS
"""The cup is touched if the centres of gripper and cup are closer than this."""
SUCCESS_DISTANCE = TARGET_RADIUS
"""The target is reached if the centres of gripper and target are closer than this."""
MAX_STEP = 0.05
"""Longest displacement of the gripper in one step, table units."""


@dataclass(frozen=True)
class Layout:
    """Centres of the three things on the table, float64 arrays `[2]` in table units."""

    gripper: np.ndarray
    cup: np.ndarray
    target: np.ndarray


def draw_layout(random: np.random.Generator) -> Layout:
    """Draw a layout: the cup so near in front that the first few steps must already pass on one side.

    Cup and gripper are centred on each other up to a small angle, so that neither side is the better one.
    """
    gripper = np.array([random.uniform(0.38, 0.62), random.uniform(0.10, 0.18)])
    angle = math.pi / 2 + random.uniform(-0.15, 0.15)
    distance = random.uniform(0.15, 0.165)
    cup = gripper + distance * np.array([math.cos(angle), math.sin(angle)])
    target = np.array([cup[0] + random.uniform(-0.22, 0.22), random.uniform(0.78, 0.90)])
    return Layout(gripper, cup, target)


@dataclass(frozen=True)
class DetourExpert:
    """Passes the cup on one side at a constant clearance, then goes straight to the target.

    It uses the present position only, so it also recovers from disturbances.

    Args:
        side: Where to pass the cup, as seen in the image.
        speed: Length of a step, table units.
        clearance: Free space kept between gripper and cup, table units.
    """

    side: Side
    speed: float = 0.032
    clearance: float = 0.035

    def act(self, layout: Layout, position: np.ndarray) -> np.ndarray:
        """Return the next displacement `[2]`, float32.

        Args:
            layout: Where cup and target are.
            position: The gripper's centre `[2]`, table units.
        """
        to_target = layout.target - position
        remaining = float(np.hypot(*to_target))
        if remaining <= self.speed:
            return to_target.astype(np.float32)
        direction = (
            to_target / remaining if self._is_free(layout, position) else self._around(layout, position)
        )
        return (self.speed * direction).astype(np.float32)

    def plan(self, layout: Layout, position: np.ndarray | None = None, max_steps: int = 100) -> np.ndarray:
        """Return all displacements `[t, 2]` from `position` (default: the start) to the target."""
        position = layout.gripper if position is None else position
        steps: list[np.ndarray] = []
        while len(steps) < max_steps and np.hypot(*(layout.target - position)) > 1e-6:
            steps.append(self.act(layout, position))
            position = position + steps[-1]
        return np.array(steps, dtype=np.float32).reshape(-1, 2)

    @property
    def _orbit(self) -> float:
        return TOUCH_DISTANCE + self.clearance

    def _is_free(self, layout: Layout, position: np.ndarray) -> bool:
        """Return whether the straight line to the target keeps clear of the cup, on the expert's side."""
        heading = (layout.target - position) / np.hypot(*(layout.target - position))
        to_cup = layout.cup - position
        if heading @ to_cup <= 0:  # the cup lies behind
            return True
        offset = heading[0] * to_cup[1] - heading[1] * to_cup[0]  # positive: the cup is on the left hand
        return (-offset if self.side == "left" else offset) >= self._orbit - 1e-3

    def _around(self, layout: Layout, position: np.ndarray) -> np.ndarray:
        """Return the unit heading of the circle around the cup, steered back on to it when off it."""
        away = position - layout.cup
        distance = float(np.hypot(*away))
        radial = away / distance
        clockwise = np.array([radial[1], -radial[0]])
        tangent = clockwise if self.side == "left" else -clockwise
        chord = self.speed / (2 * self._orbit)  # a straight step along the tangent would leave the circle
        angle = float(np.clip(chord + (distance - self._orbit) / (3 * self.speed), -0.6, 0.6))
        return math.cos(angle) * tangent - math.sin(angle) * radial


def touches_cup(layout: Layout, start: np.ndarray, end: np.ndarray) -> bool:
    """Return whether the gripper meets the cup anywhere on the straight way from `start` to `end`."""
    way = end - start
    length = float(way @ way)
    share = float(np.clip((layout.cup - start) @ way / length, 0.0, 1.0)) if length > 0 else 0.0
    return float(np.hypot(*(start + share * way - layout.cup))) < TOUCH_DISTANCE
