"""What to do about an image that is not uint8 `[h, w, 3]`, in one sentence."""

from typing import Any

import numpy as np
import torch


def image_hint(image: np.ndarray, value: Any) -> str:
    """Return a sentence with a space before it, or nothing where there is no advice.

    Args:
        image: The image as an array.
        value: The same as it was given: an array of numpy or torch, or lists.
    """
    is_torch = isinstance(value, torch.Tensor)
    if image.dtype.kind == "O":
        return " Leave out a camera that is not there."
    if not image.size:
        return " It is empty."
    if image.ndim == 4:
        return " Leave out the axis of the batch." if len(image) == 1 else ""
    if image.dtype.kind in "fiu" and image.dtype != np.uint8:
        return _as_bytes(image, value)
    if image.ndim == 2 or image.shape[-1:] == (1,):
        return " It has no colours."
    if image.ndim == 3 and image.shape[0] == 3:
        made = "image.permute" if is_torch else "image.transpose"
        made = made if is_torch or isinstance(value, np.ndarray) else "np.asarray(image).transpose"
        return f" The channels come last: {made}(1, 2, 0)."
    return " Leave out the alpha channel: image[..., :3]." if image.shape[-1:] == (4,) else ""


def _as_bytes(image: np.ndarray, value: Any) -> str:
    """Say how an image of other numbers becomes one of bytes; what they are is seen by their range."""
    is_torch = isinstance(value, torch.Tensor)
    made = "to(torch.uint8)" if is_torch else "astype('uint8')"
    name = "image" if is_torch or isinstance(value, np.ndarray) else "np.asarray(image)"
    if not np.isfinite(image).all():
        return " It holds values that are not finite."
    low, high, is_float = image.min(), image.max(), image.dtype.kind == "f"
    if is_float and low >= 0 and high <= 1:
        return f" Values in [0, 1] become bytes by (255 * {name}).round().{made}."
    if is_float and low >= -1 and high <= 1:
        return f" Values in [-1, 1] become bytes by (127.5 * ({name} + 1)).round().{made}."
    if low >= 0 and high <= 255:
        return f" Values in [0, 255] become bytes by {name}.{'round().' if is_float else ''}{made}."
    return f" Bytes are from 0 to 255, and its values from {low:.6g} to {high:.6g}."
