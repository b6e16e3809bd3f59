import re

import numpy as np
import pytest
import torch

from vla.transforms.images.hints import image_hint

BYTES = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.int32, torch.float32, torch.int64])
@pytest.mark.parametrize("low", [0, 1, -1])
def test_the_advice_for_other_numbers_makes_the_image(kind, low):
    is_float = kind in (np.float32, np.float64, torch.float32)
    numbers = {0: BYTES, 1: BYTES / 255, -1: BYTES / 127.5 - 1}[low if is_float else 0]
    is_torch = isinstance(kind, torch.dtype)
    image = torch.from_numpy(numbers).to(kind) if is_torch else numbers.astype(kind)
    advice = re.search(r"bytes by (.+)\.$", image_hint(np.asarray(image), image))
    made = np.asarray(eval(advice[1], {"image": image, "torch": torch}))
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, BYTES)


@pytest.mark.parametrize("image", [np.full((4, 5, 3), 65535, np.uint16), np.full((4, 5, 3), 65535.0)])
def test_numbers_that_are_no_bytes_are_named(image):
    assert image_hint(image, image) == " Bytes are from 0 to 255, and its values from 65535 to 65535."
