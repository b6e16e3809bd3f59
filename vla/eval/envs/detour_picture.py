"""The picture of `vla/Detour-v0`: a table from above, discs with soft edges at sub-pixel positions.

What stands still during an episode is drawn once; a frame then costs one copy and one small patch.
"""

from dataclasses import dataclass

import numpy as np

from vla.eval.envs.detour_layout import CUP_RADIUS, GRIPPER_RADIUS, TARGET_RADIUS, Layout

Colour = tuple[int, int, int]

TABLE: Colour = (238, 232, 220)
EDGE: Colour = (190, 170, 140)
SHADOW: Colour = (120, 108, 90)


@dataclass(frozen=True)
class Ring:
    """One disc of a thing: drawn over the discs before it.

    `radius` and `soft` (width of the edge beyond the anti-aliased pixel) are in table units, `drop` is how
    far the disc is shifted to the lower right, `strength` its opacity in [0, 1].
    """

    radius: float
    colour: Colour
    soft: float = 0.0
    drop: float = 0.0
    strength: float = 1.0


TARGET = (
    Ring(TARGET_RADIUS, (44, 150, 84)),
    Ring(0.70 * TARGET_RADIUS, (214, 240, 214)),
    Ring(0.38 * TARGET_RADIUS, (44, 150, 84)),
)
CUP = (
    Ring(CUP_RADIUS, SHADOW, soft=0.02, drop=0.012, strength=0.5),
    Ring(CUP_RADIUS, (206, 58, 40)),
    Ring(0.80 * CUP_RADIUS, (240, 138, 96)),
    Ring(0.66 * CUP_RADIUS, (120, 44, 32)),
)
GRIPPER = (
    Ring(GRIPPER_RADIUS, SHADOW, soft=0.02, drop=0.016, strength=0.5),
    Ring(GRIPPER_RADIUS, (30, 58, 138)),
    Ring(0.78 * GRIPPER_RADIUS, (66, 116, 224)),
    Ring(0.30 * GRIPPER_RADIUS, (235, 242, 255)),
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
    reach = max(ring.radius + ring.soft + ring.drop for ring in rings) * size + 1.0
    left, right = max(int(column - reach), 0), min(int(column + reach) + 2, size)
    top, bottom = max(int(row - reach), 0), min(int(row + reach) + 2, size)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - column)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - row)
    patch = image[top:bottom, left:right].astype(np.float32)
    for ring in rings:
        drop = ring.drop * size
        distance = np.sqrt((x - drop) ** 2 + (y - drop) ** 2)
        width = 1.0 + ring.soft * size
        cover = np.clip((ring.radius * size - distance) / width + 0.5, 0.0, 1.0) * ring.strength
        patch += cover[:, :, None] * (np.array(ring.colour, dtype=np.float32) - patch)
    image[top:bottom, left:right] = (patch + 0.5).astype(np.uint8)
