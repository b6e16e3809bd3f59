"""Images as JPEG: over Wi-Fi a tenth of the bytes, where something that writes JPEG is at hand."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping
from typing import Any, Union

import numpy as np

from vla_client.errors import ConfigError, ObservationError

Encoder = Callable[[np.ndarray], bytes]
"""Turns an image, uint8 `[h, w, 3]` in red, green, blue, into the bytes of a JPEG or PNG."""

Jpeg = Union[None, bool, int, Encoder]
"""What `Client` takes: no JPEG, JPEG of quality 90, of another quality, or by a function of the user's."""


def encoder(jpeg: Jpeg) -> Encoder | None:
    """Return what writes JPEGs; None where images are sent as they are.

    Raises:
        ConfigError: Neither Pillow nor OpenCV is installed, or `jpeg` is not a quality from 1 to 100.
    """
    if jpeg is None or jpeg is False:
        return None
    if callable(jpeg):
        return jpeg
    quality = 90 if jpeg is True else jpeg
    if not isinstance(quality, int) or not 1 <= quality <= 100:
        raise ConfigError(f"jpeg must be True, a quality from 1 to 100, or a function, got {jpeg!r}.")
    for make in (_pillow, _opencv):
        try:
            return make(quality)
        except ImportError:
            continue
    raise ConfigError(
        "jpeg needs Pillow (pip install pillow) or OpenCV (pip install opencv-python), and neither is "
        "installed; a function from an image to the bytes of its JPEG serves as well."
    )


def encoded(value: Any, encode: Encoder, field: str = "") -> Any:
    """Return a value with every image in it as JPEG: arrays of uint8 `[h, w, 3]` or `[3, h, w]`.

    Raises:
        ObservationError: The function did not return bytes.
    """
    if isinstance(value, Mapping):
        return {
            key: encoded(one, encode, f"{field}.{key}" if field else str(key)) for key, one in value.items()
        }
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3:
        return value
    image = value if value.shape[2] == 3 else value.transpose(1, 2, 0)
    if image.shape[2] != 3:
        return value
    made = encode(np.ascontiguousarray(image))
    if not isinstance(made, (bytes, bytearray)):
        raise ObservationError(
            f"{field}: the function that writes JPEGs returned a {type(made).__name__}, not bytes."
        )
    return bytes(made)


def _pillow(quality: int) -> Encoder:
    module = importlib.import_module("PIL.Image")

    def encode(image: np.ndarray) -> bytes:
        file = io.BytesIO()
        module.fromarray(image).save(file, "JPEG", quality=quality)
        return file.getvalue()

    return encode


def _opencv(quality: int) -> Encoder:
    module = importlib.import_module("cv2")

    def encode(image: np.ndarray) -> bytes:
        done, data = module.imencode(".jpg", image[..., ::-1], [int(module.IMWRITE_JPEG_QUALITY), quality])
        if not done:
            raise ObservationError(f"OpenCV could not write an image of shape {list(image.shape)} as JPEG.")
        return data.tobytes()

    return encode
