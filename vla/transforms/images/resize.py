"""Camera images on their way to the model: resizing, and scaling to [-1, 1].

Letters: v view (camera slot), o observation step (oldest first), h and w height and width in pixels. Images
are uint8 [3, h, w] until `ResizeImages`, so that every step before it is cheap to compute and to carry
between processes; [o, 3, h, w] where the policy reads o > 1 frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from vla.errors import ConfigError, ShapeError, did_you_mean
from vla.transforms.base import Transform
from vla.types import Sample


def resize_with_pad(image: torch.Tensor, size: int | tuple[int, int]) -> torch.Tensor:
    """Scale an image into a frame, keeping its aspect ratio, with black bars where nothing is.

    Antialiased bilinear, as Pillow's, from which a photograph differs by one level of 255 in fewer than one
    value in a hundred (black-and-white noise by two, at worst): torch's kernel is several times faster, and
    a robot waits for it at every step. It is fastest on images that lie in memory as [h, w, 3].

    Args:
        image: uint8 [3, h, w] or [o, 3, h, w].
        size: Height and width of the frame in pixels, or the side of a square; at least 2 (torch fails at 1).

    Returns:
        uint8 of that size: the image in the centre, an odd remaining row or column of the bars at the
        bottom or right. The same tensor where it already had that size.

    Raises:
        ShapeError: `image` is not a uint8 [3, h, w] or [o, 3, h, w].
        ConfigError: `size` is too small.
    """
    check_image(image, "image")
    frame_height, frame_width = (size, size) if isinstance(size, int) else size
    check_size(frame_height)
    check_size(frame_width)
    height, width = image.shape[-2:]
    if (height, width) == (frame_height, frame_width):
        return image
    # The published rule, literally: its floating-point floor sometimes makes the long side one pixel short.
    ratio = max(width / frame_width, height / frame_height)
    new_height, new_width = max(1, int(height / ratio)), max(1, int(width / ratio))
    resized = resize(image, (new_height, new_width))
    top, left = (frame_height - new_height) // 2, (frame_width - new_width) // 2
    framed = image.new_zeros(*image.shape[:-2], frame_height, frame_width)
    framed[..., top : top + new_height, left : left + new_width] = resized
    return framed


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Scale an image, antialiased bilinear, without regard to its aspect ratio.

    Args:
        image: uint8 [3, h, w] or [o, 3, h, w].
        size: New height and width in pixels.

    Returns:
        uint8 of that size.
    """
    frames = image if image.ndim == 4 else image[None]
    resized = F.interpolate(frames, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized if image.ndim == 4 else resized[0]


@dataclass(frozen=True)
class ResizeImages(Transform):
    """`images` by slot to the model's `pixel_values` and `pixel_mask`. Has nothing to undo on the way out.

    Attributes:
        slots: The model's cameras, in its order.
        size: Side of its images in pixels, at least 2.

    Raises:
        ConfigError: Slots repeat themselves or are none, or the size is too small.
        ShapeError: The sample has a camera that the model does not know, or none at all, or cameras differ
            in their number of frames (`CameraTensors` gives each its own).
    """

    name: ClassVar[str] = "resize_images"
    changes_actions: ClassVar[bool] = False

    slots: tuple[str, ...]
    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", tuple(self.slots))
        if not self.slots or len(set(self.slots)) != len(self.slots):
            raise ConfigError(f"Camera slots must be distinct and at least one, got {self.slots}.")
        check_size(self.size)

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Replace `images` by `pixel_values`, float32 [v, 3, size, size] in [-1, 1], and `pixel_mask`.

        Of o > 1 frames, `pixel_values` is [v, o, 3, size, size]. An absent camera is black (-1) and False in
        `pixel_mask`, bool [v].
        """
        images = images_by_slot(sample, self.slots)
        past = next(iter(images.values())).shape[:-3]
        pixels = torch.zeros(len(self.slots), *past, 3, self.size, self.size, dtype=torch.uint8)
        for index, slot in enumerate(self.slots):
            if slot not in images:
                continue
            if images[slot].shape[:-3] != past:
                shapes = ", ".join(f"{slot} {list(image.shape)}" for slot, image in images.items())
                raise ShapeError(f"All cameras must have as many frames as one another, got {shapes}.")
            pixels[index] = resize_with_pad(images[slot], self.size)
        rest = {key: value for key, value in sample.items() if key not in ("images", "image_is_pad")}
        tensors = {
            "pixel_values": pixels.float().div_(127.5).sub_(1.0),  # bit for bit x / 255 * 2 - 1
            "pixel_mask": torch.tensor([slot in images for slot in self.slots]),
        }
        return rest | tensors


def images_by_slot(sample: Sample, slots: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the images of a sample, checked.

    Raises:
        ShapeError: One is of a camera that is not among the slots, or is not an image, or there is none.
    """
    images = sample.get("images", {})
    for slot, image in images.items():
        if slot not in slots:
            hint = did_you_mean(slot, slots)
            raise ShapeError(f"The policy has no camera '{slot}', only {', '.join(slots)}.{hint}")
        check_image(image, f"Camera '{slot}'")
    if not images:
        raise ShapeError(
            f"The sample holds no image: the policy looks through {', '.join(slots)}, "
            "of which at least one must be there."
        )
    return images


def check_image(image: torch.Tensor, name: str) -> None:
    """Raise `ShapeError` unless a tensor is an image, uint8 [3, h, w], or o > 1 of them, [o, 3, h, w]."""
    is_one_or_more = image.ndim == 3 or (image.ndim == 4 and image.shape[0] > 1)
    if not is_one_or_more or image.shape[-3] != 3 or image.dtype != torch.uint8 or image.numel() == 0:
        raise ShapeError(
            f"{name} must be uint8 [3, h, w], got {str(image.dtype).removeprefix('torch.')} "
            f"{list(image.shape)}."
        )


def check_size(size: int) -> None:
    """Raise `ConfigError` for a size in pixels that is too small."""
    if size < 2:
        raise ConfigError(f"The size of an image must be at least 2 pixels, got {size}.")
