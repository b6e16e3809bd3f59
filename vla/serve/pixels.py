"""Images as clients send them, as uint8 [h, w, 3]: arrays of either layout, floats in [0, 1], JPEG, PNG.

A client of openpi may send either layout, and its policies look at the shape. What the shape leaves open is
refused: an image read the wrong way is noise that a policy acts on.
"""

import io
import struct
from typing import Any

import numpy as np
from PIL import Image

from vla.errors import ObservationError

MAX_PIXELS = 4096 * 4096
"""Pixels of an image that is read: beyond any camera of a robot, and 48 MiB once decoded."""

_MARKS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    OverflowError,
    IndexError,
)
"""What Pillow raises over damaged files."""


def read_image(value: Any, field: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return an image as uint8 `[h, w, 3]`.

    Args:
        value: uint8, or floats in [0, 1], `[h, w, 3]` or `[3, h, w]`; or the bytes of a JPEG or PNG.
        field: What the client calls it, for messages.
        max_pixels: Height times width that is accepted at most.

    Raises:
        ObservationError: It is something else, damaged, too large, or the shape tells not which axis is that
            of the channels.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return _decoded(bytes(value), field, max_pixels)
    array = _array(value, field)
    image = _channels_last(array, field)
    if image.shape[0] * image.shape[1] > max_pixels:
        raise ObservationError(_too_large(field, image.shape[1], image.shape[0], max_pixels))
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    with np.errstate(invalid="ignore"):
        inside = (image >= 0) & (image <= 1)  # not of NaN
    if not inside.all():
        odd = image[tuple(np.argwhere(~inside)[0])]
        raise ObservationError(
            f"{field} holds the float {odd}: an image of floats lies in [0, 1]. Images from 0 to 255 are "
            f"sent as uint8: {field} = image.astype('uint8')."
        )
    return np.rint(image.astype(np.float32) * 255).astype(np.uint8)


def _array(value: Any, field: str) -> np.ndarray:
    """Return what may be an image, of uint8 or floats."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ObservationError(f"{field} is not an image: {' '.join(str(error).split())}.") from error
    if isinstance(value, list | tuple) and array.dtype.kind == "i" and array.size:
        if array.min() < 0 or array.max() > 255:
            raise ObservationError(f"{field} is a list with numbers outside [0, 255].")
        array = array.astype(np.uint8)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ObservationError(
            f"{field} must be uint8, floats in [0, 1] or the bytes of a JPEG or PNG, got "
            f"{_described(value, array)}."
        )
    return array


def _channels_last(array: np.ndarray, field: str) -> np.ndarray:
    got = f"got {array.dtype} {list(array.shape)}"
    if array.ndim != 3 or not array.size:
        hint = " Leave out the axis of the batch." if array.ndim == 4 and len(array) == 1 else ""
        raise ObservationError(f"{field} must be one image, [h, w, 3] or [3, h, w], {got}.{hint}")
    first, last = array.shape[0] == 3, array.shape[2] == 3
    if first and last:
        raise ObservationError(
            f"{field} may be [3, h, w] or [h, w, 3]: {list(array.shape)} does not tell. Send an image that "
            "is neither 3 pixels wide nor 3 high."
        )
    if not first and not last:
        hint = " Leave out the alpha channel: image[..., :3]." if array.shape[2] == 4 else ""
        raise ObservationError(f"{field} must have three channels, [h, w, 3] or [3, h, w], {got}.{hint}")
    return array if last else array.transpose(1, 2, 0)


def _decoded(data: bytes, field: str, max_pixels: int) -> np.ndarray:
    kind = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if kind is None:
        begins = data[:8].hex(" ") or "nothing"
        raise ObservationError(
            f"{field} is {len(data)} bytes that begin with {begins}: bytes must be a JPEG or a PNG, and "
            "other images are arrays."
        )
    try:
        image = Image.open(io.BytesIO(data), formats=[kind])
        if image.width * image.height > max_pixels:
            raise ObservationError(_too_large(field, image.width, image.height, max_pixels))
        if image.mode != "RGB":
            raise ObservationError(
                f"{field} is a {kind} of Pillow's mode '{image.mode}': images have three channels of 8 bits, "
                "red, green and blue (RGB)."
            )
        image.load()
        return np.array(image)
    except ObservationError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ObservationError(
            f"{field} is a {kind} of far more than the {max_pixels} pixels that are read."
        ) from error
    except _UNREADABLE as error:
        raise ObservationError(
            f"{field} is a damaged or truncated {kind} of {len(data)} bytes: "
            f"{' '.join(str(error).split()).rstrip('.')}."
        ) from error


def _too_large(field: str, width: int, height: int, max_pixels: int) -> str:
    return (
        f"{field} is {width} wide and {height} high, {width * height} pixels; at most {max_pixels} are read. "
        "Policies see images of a few hundred pixels: resize it before it is sent."
    )


def _described(value: Any, array: np.ndarray) -> str:
    if array.dtype.kind == "O" or not isinstance(value, np.ndarray | np.generic | list | tuple):
        return f"a {type(value).__name__}"
    return f"{'text' if array.dtype.kind in 'US' else array.dtype} {list(array.shape)}"
