"""The image of `vla/Detour-v0`: a table from above, discs with soft edges at sub-pixel positions.

Static things are drawn once per episode; a frame then costs one copy and one small patch.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vla.eval.envs.detour_layout import CUP_RADIUS, GRIPPER_RADIUS, TARGET_RADIUS, Layout

Colour = tuple[int, int, int]

# A table of medium brightness is near zero when a policy scales the image to [-1, 1], so that the things on
# it, and not the empty table, dominate its first layer's input: a small pi-0 reached 97 % of the
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


@dataclass(frozen=True)
class Camera:
    """A view of the table from straight above.

    The default shows the whole table and nothing else, x to the right and y upwards.

    Args:
        turn: By how much the table appears turned, degrees counter-clockwise.
        zoom: Width of the image over the part of the table that it shows; below 1 the floor shows, too.
        centre: The place in the middle of the image, table units.
    """

    turn: float = 0.0
    zoom: float = 1.0
    centre: tuple[float, float] = (0.5, 0.5)

    @cached_property
    def matrix(self) -> np.ndarray:
        """How directions on the table turn and stretch in the image, `[2, 2]`."""
        angle = math.radians(self.turn)
        turned = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        return self.zoom * np.array(turned)

    @cached_property
    def offset(self) -> np.ndarray:
        """Where in the image the table's origin lies, `[2]`."""
        return 0.5 - self.matrix @ np.array(self.centre)

    def place(self, point: np.ndarray) -> np.ndarray:
        """Return where in the image a point `[2]` of the table lies, from bottom left to (1, 1)."""
        return self.matrix @ point + self.offset


ABOVE = Camera()


def draw_table(size: int, camera: Camera = ABOVE) -> np.ndarray:
    """Return the empty table, uint8 `[size, size, 3]`; its edge and what is beyond are of one colour."""
    middles = (np.arange(size) + 0.5) / size
    seen = np.stack(np.meshgrid(middles, middles[::-1]), axis=-1)
    places = (seen - camera.offset) @ np.linalg.inv(camera.matrix).T
    edge = max(1, round(size / 64)) / (size * camera.zoom)
    is_table = np.all((places > edge) & (places < 1 - edge), axis=-1)
    return np.where(is_table[..., None], TABLE, EDGE).astype(np.uint8)


def draw_scene(table: np.ndarray, layout: Layout, camera: Camera = ABOVE) -> np.ndarray:
    """Return a copy of the table, as the camera sees it, with target and cup on it."""
    scene = table.copy()
    _draw(scene, layout.target, TARGET, camera)
    _draw(scene, layout.cup, CUP, camera)
    return scene


def draw_gripper(scene: np.ndarray, position: np.ndarray, camera: Camera = ABOVE) -> np.ndarray:
    """Return a copy of the scene with the gripper at `position` (table units)."""
    frame = scene.copy()
    _draw(frame, position, GRIPPER, camera)
    return frame


def _draw(image: np.ndarray, centre: np.ndarray, rings: tuple[Ring, ...], camera: Camera) -> None:
    """Blend a thing into `image` in place; whatever lies outside the image is cut off."""
    size = image.shape[0]
    seen = camera.place(centre)
    column, row = float(seen[0]) * size, (1.0 - float(seen[1])) * size
    radii = [ring.radius * camera.zoom * size for ring in rings]
    reach = max(radii) + 1.0
    left, right = max(int(column - reach), 0), min(int(column + reach) + 2, size)
    top, bottom = max(int(row - reach), 0), min(int(row + reach) + 2, size)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - column)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - row)
    patch = image[top:bottom, left:right].astype(np.float32)
    distance = np.sqrt(x**2 + y**2)
    for ring, radius in zip(rings, radii, strict=True):
        cover = np.clip(radius - distance + 0.5, 0.0, 1.0)
        patch += cover[:, :, None] * (np.array(ring.colour, dtype=np.float32) - patch)
    image[top:bottom, left:right] = (patch + 0.5).astype(np.uint8)
