"""A robot's cameras: what they are called, and which of them hang upside down.

`images` may come under two kinds of name. Under a robot's own camera name an image is as the robot sees it;
under a camera slot of the policy it is as the dataset stores it. The two can differ (LIBERO's published
datasets are turned by 180 degrees against its simulator), so a rotation is bound to the name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from vla.errors import ConfigError, ShapeError
from vla.transforms.base import Pipeline, Transform
from vla.transforms.images.resize import ResizeImages
from vla.transforms.images.tensors import CameraTensors
from vla.types import Sample


@dataclass(frozen=True)
class RotateImages(Transform):
    """Images of some cameras, all their frames, turned clockwise by a multiple of 90 degrees.

    Attributes:
        degrees: Name of the image in `images` -> 90, 180 or 270, clockwise.

    Raises:
        ConfigError: An angle is none of these.
    """

    name: ClassVar[str] = "rotate_images"
    changes_actions: ClassVar[bool] = False

    degrees: Mapping[str, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "degrees", dict(self.degrees))
        for camera, angle in self.degrees.items():
            if type(angle) is not int or angle not in (90, 180, 270):
                raise ConfigError(
                    f"Camera '{camera}' can be turned by 90, 180 or 270 degrees clockwise, got {angle}."
                )

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Turn each of `images`, `[..., 3, h, w]`, that is named in `degrees`."""
        return self._turned(sample, -1)

    def inverse(self, sample: Sample) -> Sample:
        """Turn them back."""
        return self._turned(sample, 1)

    def _turned(self, sample: Sample, direction: int) -> Sample:
        images = sample.get("images", {})
        # rot90 counts quarter turns anticlockwise as seen in an image whose rows run downwards.
        turned = {
            camera: torch.rot90(images[camera], direction * angle // 90, dims=(-2, -1))
            for camera, angle in self.degrees.items()
            if camera in images
        }
        return sample | {"images": {**images, **turned}} if turned else sample


@dataclass(frozen=True)
class RenameCameras(Transform):
    """Images under a robot's camera names, put under the policy's camera slots.

    Images that come under a slot's name stay there; others are left for `ResizeImages` to refuse.

    Attributes:
        slots: The robot's camera name -> slot.

    Raises:
        ConfigError: Two cameras go into one slot.
        ShapeError: A sample has two images for one slot.
    """

    name: ClassVar[str] = "rename_cameras"
    changes_actions: ClassVar[bool] = False

    slots: Mapping[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", dict(self.slots))
        if len(set(self.slots.values())) < len(self.slots):
            raise ConfigError(f"Every camera needs a slot of its own, got {self.slots}.")

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Rename the entries of `images`."""
        for camera, slot in self.slots.items():
            if camera != slot and {camera, slot} <= sample.get("images", {}).keys():
                raise ShapeError(f"'{camera}' is the camera for the slot '{slot}': give one of the two.")
        return self._renamed(sample, self.slots)

    def inverse(self, sample: Sample) -> Sample:
        """Give the entries of `images` the robot's names."""
        return self._renamed(sample, {slot: camera for camera, slot in self.slots.items()})

    @staticmethod
    def _renamed(sample: Sample, names: Mapping[str, str]) -> Sample:
        renamed = {}
        for key in ("images", "image_is_pad"):
            entries = sample.get(key, {})
            if any(name in entries for name in names):
                renamed[key] = {names.get(name, name): entry for name, entry in entries.items()}
        return sample | renamed if renamed else sample


def camera_slots(pipeline: Pipeline) -> dict[str, str]:
    """Return camera slot by every name under which a pipeline takes an image: the slots', the robot's."""
    readers = [one for one in pipeline.transforms if isinstance(one, ResizeImages | CameraTensors)]
    slots = {slot: slot for reader in readers for slot in reader.slots}
    rename = pipeline.find(RenameCameras)
    own = {} if rename is None else {name: slot for name, slot in rename.slots.items() if name not in slots}
    return slots | own


def camera_names(pipeline: Pipeline) -> tuple[str, ...]:
    """Return every name under which a pipeline takes an image: its slots, and its robot's names for them."""
    return tuple(camera_slots(pipeline))
