"""Camera images as the page shows them: encoded when somebody asks, and once for all who do."""

import io
from collections import OrderedDict

import numpy as np
from PIL import Image

MAX_SIDE = 480
"""Longest side of an image on the page, pixels."""

QUALITY = 90

CACHED = 32
"""Images that are kept encoded."""


class JpegCache:
    """Encodes images, and keeps the last ones; for one thread."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[int, str], tuple[int, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._made)

    def jpeg(self, number: int, frame: int, camera: str, image: np.ndarray) -> bytes:
        """Return the JPEG of a connection's image, uint8 `[h, w, 3]`, of its observation `frame`."""
        key = (number, camera)
        frame_before, data = self._made.get(key, (-1, b""))
        if frame_before != frame:
            data = encode(image)
            self._made[key] = (frame, data)
        self._made.move_to_end(key)
        while len(self._made) > CACHED:
            self._made.popitem(last=False)
        return data


def encode(image: np.ndarray) -> bytes:
    """Return an image, uint8 `[h, w, 3]`, as a JPEG no side of which is longer than `MAX_SIDE`."""
    made = Image.fromarray(image)
    made.thumbnail((MAX_SIDE, MAX_SIDE), reducing_gap=2.0)
    stream = io.BytesIO()
    made.save(stream, "JPEG", quality=QUALITY, subsampling=0)  # small things keep their colours
    return stream.getvalue()
