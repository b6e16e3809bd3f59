"""The picture of `vla/Detour-v0`: a table from above, discs with soft edges at sub-pixel positions.

What stands still during an episode is drawn once; a frame then costs one copy and one small patch.
"""

from dataclasses import dataclass

import numpy as np

from vla.eval.envs.detour_layout import CUP_RADIUS, GRIPPER_RADIUS, TARGET_RADIUS, Layout

Colour = tuple[int, int, int]

# A table of medium brightness lies near zero once a policy has scaled the picture to [-1, 1], so that the
# things on it, and not the empty table, are what its first layer sees: a small pi-0 reached 97 % of the
# targets where, after as many steps on a bright table, it had reached 25 %.
TABLE: Colour = (128, 124, 120)
EDGE: Colour = (70, 64, 60)


@dataclass(frozen=True)
class Ring:
    """One disc of a thing: drawn over the discs before it.

    `radius` is in table units.
    """

    radius: float
    colour: Colour


TARGET = (
    Ring(TARGET_RADIUS, (30, 200, 90)),
    Ring(0.45 * TARGET_RADIUS, (225, 255, 225)),
)
CUP = (
    Ring(CUP_RADIUS, (215, 40, 30)),
    Ring(0.72 * CUP_RADIUS, (250, 150, 110)),
    Ring(0.55 * CUP_RADIUS, (120, 20, 15)),
)
GRIPPER = (
    Ring(GRIPPER_RADIUS, (20, 40, 140)),
    Ring(0.70 * GRIPPER_RADIUS, (90, 150, 255)),
)


def draw_table(size: int) -> np.ndarray:
    """Return the empty table, uint8 `[size, size, 3]`."""
    table = np.empty((size, size, 3), dtype=np.uint8)
    table[:] = EDGE
    edge = max(1, round(size / 64))
    table[edge:-edge, edge:-edge] = TABLE
    return table


def draw_scene(table: np.ndarray, layout: Layout) -> np.ndarray:
    """Return a copy of the table with target and cup on it."""
    scene = table.copy()
    _draw(scene, layout.target, TARGET)
    _draw(scene, layout.cup, CUP)
    return scene


def draw_gripper(scene: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return a copy of the scene with the gripper at `position` (table units)."""
    frame = scene.copy()
    _draw(frame, position, GRIPPER)
    return frame


def _draw(image: np.ndarray, centre: np.ndarray, rings: tuple[Ring, ...]) -> None:
    """Blend a thing into `image` in place; whatever lies outside the picture is cut off."""
    size = image.shape[0]
    column, row = float(centre[0]) * size, (1.0 - float(centre[1])) * size
    reach = max(ring.radius for ring in rings) * size + 1.0
    left, right = max(int(column - reach), 0), min(int(column + reach) + 2, size)
    top, bottom = max(int(row - reach), 0), min(int(row + reach) + 2, size)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - column)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - row)
    patch = image[top:bottom, left:right].astype(np.float32)
    distance = np.sqrt(x**2 + y**2)
    for ring in rings:
        cover = np.clip(ring.radius * size - distance + 0.5, 0.0, 1.0)
        patch += cover[:, :, None] * (np.array(ring.colour, dtype=np.float32) - patch)
    image[top:bottom, left:right] = (patch + 0.5).astype(np.uint8)
