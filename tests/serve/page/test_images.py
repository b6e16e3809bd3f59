"""Images as JPEGs, made once each."""

import io

import numpy as np
from PIL import Image

from vla.serve.page import images
from vla.serve.page.images import CACHED, MAX_SIDE, JpegCache, encode


def test_a_jpeg_shows_the_image():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = (200, 100, 50)
    read = np.asarray(Image.open(io.BytesIO(encode(image))))
    assert read.shape == image.shape
    assert np.abs(read.astype(int) - image).mean() < 3


def test_a_large_image_is_made_smaller_as_it_is():
    read = Image.open(io.BytesIO(encode(np.zeros((1080, 1920, 3), np.uint8))))
    assert read.size == (MAX_SIDE, MAX_SIDE * 1080 // 1920)


def test_an_image_is_encoded_once(monkeypatch):
    made, cache = [], JpegCache()
    monkeypatch.setattr(images, "encode", lambda image: made.append(image) or bytes([len(made)]))
    image = np.zeros((2, 2, 3), np.uint8)
    assert cache.jpeg(1, 1, "top", image) == cache.jpeg(1, 1, "top", image) == b"\x01"
    assert cache.jpeg(1, 1, "wrist", image) == b"\x02"
    assert cache.jpeg(1, 2, "top", image) == b"\x03"  # the next frame
    assert cache.jpeg(1, 1, "wrist", image) == b"\x02"
    for number in range(100):
        cache.jpeg(number, 1, "top", image)
    assert len(cache) == CACHED
