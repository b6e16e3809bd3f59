"""One tensor of images per camera, each with its own size, number of frames and range of values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch

from vla.errors import ConfigError, ShapeError
from vla.transforms.base import Transform
from vla.transforms.images.resize import check_size, images_by_slot, resize, resize_with_pad
from vla.types import Sample

Fit = Literal["letterbox", "stretch"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class CameraFormat:
    """What a policy wants the images of one camera to be like.

    Attributes:
        height: Pixels, at least 2.
        width: Pixels, at least 2.
        steps: Frames that are read, the present one included.
        fit: "letterbox" keeps the aspect ratio, with black bars; "stretch" does not.
        crop: Height and width of a part that is cut out after resizing, at random in training (the same of
            all frames) and in the centre otherwise; None keeps all.
        low: Value of black.
        high: Value of white.
        mean: By channel, of values in [0, 1]: with `std`, values are (x - mean) / std instead of between low
            and high. None of both by default.
        std: See `mean`.

    Raises:
        ConfigError: A size or the number of frames is too small, the crop is larger than the image, or the
            range is empty.
    """

    height: int
    width: int
    steps: int = 1
    fit: Fit = "letterbox"
    crop: tuple[int, int] | None = None
    low: float = -1.0
    high: float = 1.0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("crop", "mean", "std"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_size(self.height)
        check_size(self.width)
        if self.steps < 1:
            raise ConfigError(f"At least one frame of a camera must be read, got steps={self.steps}.")
        if self.fit not in get_args(Fit):
            raise ConfigError(f"fit must be one of {', '.join(get_args(Fit))}; got '{self.fit}'.")
        if self.crop is not None and not (0 < self.crop[0] <= self.height and 0 < self.crop[1] <= self.width):
            raise ConfigError(f"A crop of {self.crop} does not lie in {self.height} x {self.width} pixels.")
        if (self.mean is None) != (self.std is None) or (self.std is not None and min(self.std) <= 0):
            raise ConfigError(f"mean and std belong together, std positive; got {self.mean}, {self.std}.")
        if self.low >= self.high:
            raise ConfigError(f"low must be less than high, got {self.low} and {self.high}.")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        return self.crop or (self.height, self.width)


@dataclass(frozen=True)
class CameraTensors(Transform):
    """`images` by slot to a tensor of each camera. Has nothing to undo on the way out.

    Attributes:
        cameras: What each camera's images are to be like, by slot, in the policy's order.

    Raises:
        ConfigError: There are no cameras.
        ShapeError: The sample has a camera that the policy does not know, none at all, or another number of
            frames than the policy reads.
    """

    name: ClassVar[str] = "camera_tensors"
    changes_actions: ClassVar[bool] = False

    cameras: Mapping[str, CameraFormat]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", dict(self.cameras))
        if not self.cameras:
            raise ConfigError("CameraTensors needs at least one camera.")

    @property
    def slots(self) -> tuple[str, ...]:
        """The policy's cameras."""
        return tuple(self.cameras)

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Replace `images` by a float32 tensor `image_<slot>` of each camera.

        It is [3, h, w], or [o, 3, h, w] where o > 1 frames are read; then `image_<slot>_is_pad`, bool [o], is
        True before the episode's start. An absent camera is black, and False in `camera_mask`, bool [v].
        """
        images = images_by_slot(sample, self.slots)
        pads = sample.get("image_is_pad", {})
        tensors: dict[str, torch.Tensor] = {}
        for slot, wanted in self.cameras.items():
            past = () if wanted.steps == 1 else (wanted.steps,)
            image = images.get(slot)
            if image is None:
                image = torch.zeros(*past, 3, *wanted.size, dtype=torch.uint8)
            elif image.shape[:-3] != past:
                raise ShapeError(
                    f"The policy reads {wanted.steps} frames of camera '{slot}', got {list(image.shape)}."
                )
            else:
                image = _fitted(image, wanted, generator)
            tensors[f"image_{slot}"] = _scaled(image, wanted)
            if past:
                tensors[f"image_{slot}_is_pad"] = pads.get(slot, torch.zeros(wanted.steps, dtype=torch.bool))
        tensors["camera_mask"] = torch.tensor([slot in images for slot in self.slots])
        rest = {key: value for key, value in sample.items() if key not in ("images", "image_is_pad")}
        return rest | tensors

    def to_json(self) -> dict[str, Any]:
        """Return the cameras' settings."""
        return {"cameras": {slot: asdict(wanted) for slot, wanted in self.cameras.items()}}

    @classmethod
    def from_json(cls, values: dict[str, Any], folder: Path) -> Self:
        """Rebuild from `to_json`."""
        return cls({slot: CameraFormat(**wanted) for slot, wanted in values["cameras"].items()})


def _fitted(image: torch.Tensor, wanted: CameraFormat, generator: torch.Generator | None) -> torch.Tensor:
    """Return uint8 images of the wanted size, `[..., 3, h, w]`."""
    size = (wanted.height, wanted.width)
    image = resize_with_pad(image, size) if wanted.fit == "letterbox" else resize(image, size)
    if wanted.crop is None:
        return image
    room = [side - part for side, part in zip(size, wanted.crop, strict=True)]
    if generator is None:
        top, left = (margin // 2 for margin in room)
    else:
        top, left = (int(torch.randint(margin + 1, (), generator=generator)) for margin in room)
    return image[..., top : top + wanted.crop[0], left : left + wanted.crop[1]]


def _scaled(image: torch.Tensor, wanted: CameraFormat) -> torch.Tensor:
    """Return uint8 images as float32 of the wanted range."""
    pixels = image.float().div_(255.0)
    if wanted.mean is not None and wanted.std is not None:
        mean, std = (torch.tensor(channels)[:, None, None] for channels in (wanted.mean, wanted.std))
        return pixels.sub_(mean).div_(std)
    return pixels.mul_(wanted.high - wanted.low).add_(wanted.low)
