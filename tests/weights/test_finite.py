import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla.errors import WeightsError
from vla.weights.finite import CHUNK_BYTES, first_not_finite, raw_bytes, refuse_not_finite

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BAD = (float("nan"), float("inf"), -float("inf"))


def first_by_torch(tensor):
    bad = (~torch.isfinite(tensor.reshape(-1))).nonzero()
    return int(bad[0]) if len(bad) else None


@pytest.mark.parametrize(("dtype", "value"), list(itertools.product(FLOATS, BAD)))
def test_one_bad_value_is_found_wherever_it_is(dtype, value):
    length = 2 * CHUNK_BYTES // dtype.itemsize + 3
    for at in (0, 1, CHUNK_BYTES // dtype.itemsize - 1, CHUNK_BYTES // dtype.itemsize, length - 1):
        tensor = torch.zeros(length, dtype=dtype)
        tensor[at] = value
        assert first_not_finite(raw_bytes(tensor), dtype) == at


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_and_smallest_numbers_are_finite(dtype):
    limits = torch.finfo(dtype)
    tensor = torch.tensor(
        [limits.max, limits.min, limits.tiny, limits.smallest_normal, 0.0, -0.0], dtype=dtype
    )
    assert first_not_finite(raw_bytes(tensor), dtype) is None


@given(dtype=st.sampled_from(FLOATS), data=st.binary(max_size=64))
def test_any_bits_are_judged_as_torch_judges_them(dtype, data):
    data = data[: len(data) // dtype.itemsize * dtype.itemsize]
    tensor = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    assert first_not_finite(raw_bytes(tensor), dtype) == first_by_torch(tensor)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_are_finite(dtype):
    raw = np.full(64, 255, np.uint8)
    assert first_not_finite(raw, dtype) is None


def test_the_error_says_what_and_where():
    tensor = torch.zeros(3, 4)
    tensor[2, 1] = float("nan")
    tensor[2, 3] = float("inf")
    with pytest.raises(
        WeightsError, match=r"'a\.weight' in x/m\.safetensors holds nan at \[2, 1\].*download it"
    ):
        refuse_not_finite(tensor, "a.weight", Path("x/m.safetensors"))


def test_the_error_for_a_scalar():
    with pytest.raises(WeightsError, match=r"holds -inf at \[\]"):
        refuse_not_finite(torch.tensor(-float("inf")), "a", Path("m"))


def test_bytes_share_the_memory():
    tensor = torch.zeros(2, 2)
    raw_bytes(tensor)[:4] = 255
    assert torch.isnan(tensor[0, 0])
