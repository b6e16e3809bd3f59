"""Camera images on their way to the model: varied in training, resized, scaled."""

from vla.transforms.images.augment import AugmentImages, crop_and_rotate, jitter_colour
from vla.transforms.images.resize import ResizeImages, resize, resize_with_pad
from vla.transforms.images.tensors import CameraFormat, CameraTensors

__all__ = [
    "AugmentImages",
    "CameraFormat",
    "CameraTensors",
    "ResizeImages",
    "crop_and_rotate",
    "jitter_colour",
    "resize",
    "resize_with_pad",
]
