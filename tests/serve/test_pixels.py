"""Images as clients send them; Pillow decodes independently what is compared."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vla.errors import ObservationError
from vla.serve.pixels import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)


def encoded(kind, pixels=PIXELS, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "value",
    [
        PIXELS,
        PIXELS.transpose(2, 0, 1),
        PIXELS.tolist(),
        PIXELS / np.float32(255),
        (PIXELS / 255).transpose(2, 0, 1),
        (PIXELS / 255).astype(np.float16),
        encoded("PNG"),
        bytearray(encoded("PNG")),
    ],
)
def test_all_forms_of_one_image(value):
    made = read_image(value, "eye")
    assert made.dtype == np.uint8
    assert made.flags["C_CONTIGUOUS"]
    assert (made == PIXELS).all()


def test_a_jpeg_is_what_pillow_makes_of_it():
    data = encoded("JPEG", quality=90)
    assert (read_image(data, "eye") == np.array(Image.open(io.BytesIO(data)))).all()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((3, 9, 3), np.uint8), r"eye may be \[3, h, w\] or \[h, w, 3\]: \[3, 9, 3\] does not tell"),
        (np.zeros((9, 9, 4), np.uint8), "three channels.*Leave out the alpha channel"),
        (np.zeros((9, 9), np.uint8), "eye must be one image"),
        (np.zeros((1, 9, 9, 3), np.uint8), "Leave out the axis of the batch"),
        (np.zeros((0, 9, 3), np.uint8), "eye must be one image"),
        (np.full((9, 9, 3), 1.5), r"eye holds the float 1.5: .*\[0, 1\]"),
        (np.full((9, 9, 3), np.nan), "eye holds the float nan"),
        (np.zeros((9, 9, 3), np.int64), "eye must be uint8.*got int64"),
        ([[[300, 0, 0]]], "numbers outside"),
        ([[1], [1, 2]], "eye is not an image"),
        ("eye.png", "got a str"),
        (None, "got a NoneType"),
        (b"GIF89a", "eye is 6 bytes that begin with 47 49 46"),
        (b"", "begin with nothing"),
        (encoded("JPEG", mode="L"), "mode 'L'"),
        (encoded("PNG", mode="RGBA"), "mode 'RGBA'"),
        (encoded("JPEG")[:-30], "damaged or truncated JPEG"),
        (encoded("PNG")[:40], "damaged or truncated PNG"),
        (np.zeros((40, 41, 3), np.uint8), "eye is 41 wide and 40 high"),
        (encoded("PNG", np.zeros((40, 41, 3), np.uint8)), "eye is 41 wide and 40 high"),
    ],
)
def test_all_else_is_refused_by_name(value, said):
    with pytest.raises(ObservationError, match=said):
        read_image(value, "eye", max_pixels=1600)


def test_a_bomb_is_refused_before_it_is_decoded():
    data = bytearray(encoded("PNG"))
    for side in (16, 20):
        data[side : side + 4] = (60_000).to_bytes(4, "big")  # of the header: 3.6 gigapixels
    crc = zlib.crc32(bytes(data[12:29]))
    data[29:33] = crc.to_bytes(4, "big")
    with pytest.raises(ObservationError, match="far more than"):
        read_image(bytes(data), "eye")


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG"]),
    at=st.floats(0, 1, exclude_max=True),
    content=st.binary(max_size=20),
    cut=st.booleans(),
)
def test_damaged_bytes_are_an_image_or_a_sentence(kind, at, content, cut):
    data = encoded(kind)
    place = int(at * len(data))
    data = data[:place] + content + (b"" if cut else data[place + len(content) :])
    try:
        made = read_image(data, "eye", max_pixels=10_000)
    except ObservationError as error:
        assert str(error).startswith("eye is")  # noqa: PT017
    else:
        assert made.dtype == np.uint8
        assert made.shape[2] == 3
