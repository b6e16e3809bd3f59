"""Training-time augmentation of camera images: random crop, rotation and colour."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from vla.errors import ConfigError
from vla.transforms.base import Transform
from vla.transforms.images.resize import check_image, check_size, resize_with_pad
from vla.types import Sample


@dataclass(frozen=True)
class AugmentImages(Transform):
    """Random crop, rotation and colour of each camera, in training only, drawn per sample and per camera.

    All frames of a camera are varied alike, as if the camera stood elsewhere.

    Crop and rotation are one resampling of the image, about its centre and around the crop's: what the
    rotation uncovers shows the image beyond the crop, and black only beyond the image. Wrist cameras
    keep their geometry, since they move with the gripper that the action is about. The colours follow the
    published formula: brightness multiplies, contrast scales around the image's mean, saturation scales
    around each pixel's mean over its channels, in this order and clipped once at the end.

    Attributes:
        wrist_slots: Cameras that get colour only.
        crop: Share of each side that the crop keeps, in (0, 1].
        rotation_degrees: The angle is uniform within plus and minus this.
        brightness: The factor is uniform within 1 plus and minus this; likewise the next two.
        contrast: See `brightness`.
        saturation: See `brightness`.
        size: If given, images are first brought to this size by `resize_with_pad`: the cost grows with
            the number of pixels, and a camera of 480 x 640 has six times as many as the model looks at.

    Raises:
        ConfigError: A value is outside its range.
    """

    name: ClassVar[str] = "augment_images"
    changes_actions: ClassVar[bool] = False

    wrist_slots: tuple[str, ...] = ()
    crop: float = 0.95
    rotation_degrees: float = 5.0
    brightness: float = 0.3
    contrast: float = 0.4
    saturation: float = 0.5
    size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "wrist_slots", tuple(self.wrist_slots))
        if not 0 < self.crop <= 1:
            raise ConfigError(f"crop is the share of each side that is kept, in (0, 1]; got {self.crop}.")
        if not 0 <= self.rotation_degrees <= 180:
            raise ConfigError(f"rotation_degrees must be in [0, 180], got {self.rotation_degrees}.")
        for field in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"{field} must be in [0, 1], got {getattr(self, field)}.")
        if self.size is not None:
            check_size(self.size)

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Replace each of `images`, uint8 [3, h, w] or [o, 3, h, w], by a variation, if given a generator."""
        if generator is None or "images" not in sample:
            return sample
        images = sample["images"]
        # Always the same six numbers for the same cameras, so that a setting changes only its own effect.
        draws = torch.rand(len(images), 6, generator=generator).tolist()
        by_slot = dict(zip(sorted(images), draws, strict=True))
        return sample | {
            "images": {slot: self._augment(slot, image, by_slot[slot]) for slot, image in images.items()}
        }

    def _augment(self, slot: str, image: torch.Tensor, draws: list[float]) -> torch.Tensor:
        check_image(image, f"Camera '{slot}'")
        if image.ndim == 4:
            return torch.stack([self._augment(slot, frame, draws) for frame in image])
        if self.size is not None:
            image = resize_with_pad(image, self.size)
        horizontal, vertical, turn, brightness, contrast, saturation = (2 * u - 1 for u in draws)
        pixels = image.float()
        if slot not in self.wrist_slots and (self.crop < 1 or self.rotation_degrees > 0):
            angle = math.radians(self.rotation_degrees * turn)
            pixels = crop_and_rotate(pixels, self.crop, (horizontal, vertical), angle)
        pixels = jitter_colour(
            pixels,
            1 + self.brightness * brightness,
            1 + self.contrast * contrast,
            1 + self.saturation * saturation,
        )
        return pixels.clamp_(0, 255).add_(0.5).to(torch.uint8)


def crop_and_rotate(
    image: torch.Tensor, crop: float, position: tuple[float, float], angle: float
) -> torch.Tensor:
    """Resample an image through a crop, enlarged to the image's size and turned about its centre.

    Args:
        image: float32 [3, h, w].
        crop: Share of each side that the crop keeps, in (0, 1].
        position: Where the crop lies, horizontally and vertically: -1 at the left or top edge, 1 at the
            right or bottom edge.
        angle: In radians; positive turns the content anticlockwise.

    Returns:
        float32 [3, h, w], bilinear, 0 beyond the image.
    """
    height, width = image.shape[-2:]
    x = crop * (torch.arange(width, dtype=image.dtype) + (0.5 - width / 2))
    y = crop * (torch.arange(height, dtype=image.dtype) + (0.5 - height / 2))
    cos, sin = math.cos(angle), math.sin(angle)
    # Where each pixel comes from, in units in which the image spans [-1, 1] (affine_grid says the same
    # by a matrix product that costs more than the resampling itself).
    grid = image.new_empty(height, width, 2)
    left, top = (1 - crop) * position[0], (1 - crop) * position[1]
    torch.add((cos * 2 / width) * x + left, ((-sin * 2 / width) * y)[:, None], out=grid[..., 0])
    torch.add((sin * 2 / height) * x, ((cos * 2 / height) * y + top)[:, None], out=grid[..., 1])
    return F.grid_sample(image[None], grid[None], mode="bilinear", align_corners=False)[0]


def jitter_colour(image: torch.Tensor, brightness: float, contrast: float, saturation: float) -> torch.Tensor:
    """Scale an image's brightness, its contrast around its mean, its saturation around each pixel's grey.

    The three in a row are one affine map of the colour, which is how they are applied.

    Args:
        image: float32 [3, h, w], any range.
        brightness: Factor; 1 changes nothing, likewise the next two.
        contrast: See `brightness`.
        saturation: See `brightness`.

    Returns:
        float32 [3, h, w], not clipped.
    """
    gain = brightness * contrast
    colour = gain * (saturation * torch.eye(3) + (1 - saturation) / 3)
    offset = brightness * (1 - contrast) * image.mean()
    return torch.addmm(offset.expand(3, 1), colour, image.reshape(3, -1)).view_as(image)
