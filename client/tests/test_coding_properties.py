"""The coding under hypothesis, where that is installed."""

from __future__ import annotations

import numpy as np
import pytest

from vla_client.coding import CODINGS, pack, unpack
from vla_client.errors import CodingError

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
arrays = pytest.importorskip("hypothesis.extra.numpy")

TYPES = (
    arrays.boolean_dtypes()
    | arrays.integer_dtypes()
    | arrays.unsigned_integer_dtypes()
    | arrays.floating_dtypes(sizes=(16, 32, 64))
)
ARRAYS = arrays.arrays(TYPES, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | ARRAYS
)
KEYS = st.text().filter(lambda key: key not in ("nd", "__ndarray__", "__npgeneric__"))
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8)


def same(one, other):
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and one.dtype.newbyteorder("=") == other.dtype
            and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.dictionaries(KEYS, VALUES), st.sampled_from(CODINGS))
def test_values_come_back_as_they_were(value, coding):
    assert same(value, unpack(pack(value, coding))[0])


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.binary(max_size=200))
def test_random_bytes_raise_coding_errors_alone(message):
    try:
        unpack(message)
    except CodingError:
        return


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(st.dictionaries(KEYS, VALUES), st.sampled_from(CODINGS), st.data())
def test_damaged_messages_raise_coding_errors_alone(value, coding, data):
    message = bytearray(pack(value, coding))
    place = data.draw(st.integers(0, len(message) - 1))
    message[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    try:
        unpack(bytes(message))
    except CodingError:
        return
