"""The coding: golden bytes, round trips, and messages that must be refused in a sentence."""

from __future__ import annotations

import random
import struct
import tracemalloc

import msgpack
import numpy as np
import pytest
from fake_server import read, write

from vla_client.coding import CODINGS, MAX_DEPTH, MAX_VALUES, pack, unpack
from vla_client.errors import CodingError

GOLDEN = {  # worked out from the msgpack format; msgpack-numpy's as its version 0.4.8 writes them
    ("openpi", "array"): "81a16184c40b5f5f6e6461727261795f5fc3c40464617461c4040000803fc4056474797065a33c6634"
    "c40573686170659101",
    (
        "openpi",
        "scalar",
    ): "83c40d5f5f6e7067656e657269635f5fc3c40464617461cb4004000000000000c4056474797065a33c6634",
    ("msgpack-numpy", "array"): "81a16185c4026e64c3c40474797065a33c6634c4046b696e64c400c40573686170659101c404"
    "64617461c4040000803f",
    ("msgpack-numpy", "scalar"): "83c4026e64c2c40474797065a33c6634c40464617461c40400002040",
}
VALUES = {"array": {"a": np.array([1.0], np.float32)}, "scalar": np.float32(2.5)}

ARRAYS = [
    np.zeros((0, 3), np.int16),
    np.array(3, np.int64),
    np.arange(6, dtype=np.float32).reshape(2, 3).T,
    np.arange(12)[::2],
    np.arange(3, dtype=">f4"),
    np.arange(3, dtype=">i8"),
    np.array([True, False]),
    np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    np.array([1.5, -2, np.inf, np.nan], np.float16),
    np.array(["x"], "U1").view(np.uint32),
    np.float32(2.5),
    np.float16(-0.5),
    np.bool_(True),
    np.int8(-128),
    np.uint64(2**64 - 1),
]


@pytest.mark.parametrize(("coding", "kind"), GOLDEN)
def test_golden_bytes_in_both_directions(coding, kind):
    golden = bytes.fromhex(GOLDEN[coding, kind])
    assert pack(VALUES[kind], coding) == golden
    value, found = unpack(golden)
    assert found == coding
    if kind == "array":
        value = value["a"]
        assert value.tolist() == [1.0]
    assert value.dtype == np.float32
    assert np.array_equal(value, 2.5 if kind == "scalar" else [1.0])


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda one: f"{one.dtype.str}{list(one.shape)}")
def test_arrays_come_back_as_they_were(array, coding):
    for before in range(8):  # the text before it shifts where its bytes lie
        made, found = unpack(pack({"t" * (before + 1): "x" * before, "a": array}, coding))
        again = made["a"]
        assert found == coding
        assert type(again) is type(array)
        assert again.shape == array.shape
        assert again.dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(again, array) or np.array_equal(np.isnan(again), np.isnan(array))
        assert again.flags.aligned
        if isinstance(again, np.ndarray):
            assert not again.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                again[...] = 0


def test_other_code_reads_what_is_written_and_the_reverse():
    value = {
        "image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
        "n": [1, -1, 2.5, None, True, "é", b"\x00"],
    }
    other = read(pack(value))
    assert np.array_equal(other["image"], value["image"])
    assert other["n"] == value["n"]
    assert write(value) == pack(value)
    assert np.array_equal(unpack(write(value))[0]["image"], value["image"])


def test_images_are_views_of_the_message():
    message = pack({"image": np.zeros((480, 640, 3), np.uint8)})
    tracemalloc.start()
    value, _ = unpack(message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert value["image"].shape == (480, 640, 3)
    assert peak < 20_000


def test_plain_values_of_every_size_are_read_as_msgpack_reads_them():
    numbers = [
        s * (2**n + d) for n in (0, 4, 5, 7, 8, 15, 16, 31, 32, 63) for d in (-1, 0, 1) for s in (1, -1)
    ]
    plain = {
        "n": [n for n in numbers if -(2**63) <= n < 2**64],
        "f": [0.0, -1e300, float("inf")],
        "t": ["", "x" * 31, "x" * 32, "x" * 255, "x" * 256, "x" * 70_000],
        "b": [b"", b"x" * 255, b"x" * 256, b"x" * 70_000],
        "l": [list(range(15)), list(range(16)), list(range(10_000))],
        "m": {str(n): n for n in range(20)},
        "deep": {"a": {b"bytes": {"b": [[[]]]}}},
        "constants": [None, True, False],
    }
    value, coding = unpack(pack(plain))
    assert value == plain
    assert coding == "openpi"
    assert unpack(msgpack.packb([1.5], use_single_float=True))[0] == [1.5]
    assert unpack(b"\xdd\x00\x00\x00\x01\x07")[0] == [7]
    assert unpack(b"\xdf\x00\x00\x00\x01\xa1a\x07")[0] == {"a": 7}
    assert unpack(bytearray(b"\xa1a"))[0] == "a"
    assert unpack(memoryview(b"\xa1a"))[0] == "a"


def test_order_of_keys_does_not_matter_and_the_first_coding_counts():
    array = {b"shape": [1], b"dtype": "<f4", b"data": b"\0\0\x80?", b"__ndarray__": True}
    assert unpack(msgpack.packb({"a": array}))[0]["a"].tolist() == [1.0]
    other = {"data": b"\x01", "shape": [1], "type": "|u1", "nd": True}
    value, coding = unpack(msgpack.packb({"b": other, "a": array}))
    assert coding == "msgpack-numpy-text"
    assert value["b"].tolist() == [1]
    assert value["a"].tolist() == [1.0]
    assert unpack(msgpack.packb({"a": array, "b": other}))[1] == "openpi"


def test_names_of_types_are_read_in_any_form():
    for name in ("<f4", "=f4", "f4", "float32", b"<f4"):
        made = unpack(
            msgpack.packb({b"__ndarray__": True, b"data": b"\0\0\x80?", b"dtype": name, b"shape": [1]})
        )[0]
        assert made.dtype == np.float32


def _array(**changes):
    parts = {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<f4", "shape": [2], **changes}
    return {key.encode(): value for key, value in parts.items() if value is not ...}


def _other(**changes):
    parts = {"nd": True, "type": "<f4", "kind": b"", "shape": [2], "data": b"\0" * 8, **changes}
    return {key.encode(): value for key, value in parts.items() if value is not ...}


def _generic(**changes):
    return {key.encode(): value for key, value in {"__npgeneric__": True, **changes}.items()}


REFUSED = {
    "object": (_array(dtype="|O"), "has the type '|O'"),
    "void": (_array(dtype="|V8"), "has the type"),
    "complex": (_array(dtype="<c8"), "has the type"),
    "structured": (_array(dtype=[["a", "<f4"]]), "has the type"),
    "structured text": (_array(dtype="f4,f4"), "has the type"),
    "text": (_array(dtype="<U1"), "has the type"),
    "time": (_array(dtype="<M8[s]"), "has the type"),
    "long double": (_array(dtype="<f16"), "has the type"),
    "type no text": (_array(dtype=None), "has the type None"),
    "negative": (_array(shape=[-1, -2]), "negative or too large"),
    "huge": (_array(shape=[2**40, 2**40]), "negative or too large"),
    "huge and empty": (_array(shape=[0, 2**40], data=b""), "negative or too large"),
    "product overflows": (_array(shape=[2**16] * 8), "negative or too large"),
    "many dimensions": (_array(shape=[1] * 9, data=b"\0" * 4), "9 dimensions"),
    "shape no list": (_array(shape=2), "list of whole numbers"),
    "shape of floats": (_array(shape=[2.0]), "list of whole numbers"),
    "shape of truths": (_array(shape=[True, 2]), "list of whole numbers"),
    "short": (_array(data=b"\0" * 7), "takes 8 bytes, got 7"),
    "long": (_array(data=b"\0" * 9), "takes 8 bytes, got 9"),
    "data text": (_array(data="0" * 8), "must be bytes, got str"),
    "no data": (_array(data=...), "lacks its 'data'"),
    "no shape": (_array(shape=...), "lacks its 'shape'"),
    "no type": (_array(dtype=...), "lacks its 'dtype'"),
    "bad truth": (_array(dtype="|b1", data=b"\x00\x02"), "other than 0 and 1"),
    "other: object": (_other(type="|O", kind=b"O"), "kind"),
    "other: structured": (_other(type=[["a", "<f4"]], kind=b"V"), "kind"),
    "other: short": (_other(data=b""), "takes 8 bytes"),
    "other: no type": (_other(type=...), "lacks its 'type'"),
    "other: long scalar": (_other(nd=False, shape=...), "takes 4 bytes, got 8"),
    "scalar too large": (_generic(data=300, dtype="|u1"), "outside its range"),
    "scalar too small": (_generic(data=-1, dtype="<u8"), "outside its range"),
    "scalar float too large": (_generic(data=1e300, dtype="<f4"), "outside its range"),
    "scalar of text": (_generic(data="1", dtype="<f4"), "not a number of that type"),
    "scalar of an array": (_generic(data=_array(), dtype="<f4"), "not a number of that type"),
    "whole scalar of a float": (_generic(data=1.0, dtype="<i4"), "not a number of that type"),
    "truth of a number": (_generic(data=1, dtype="|b1"), "not a number of that type"),
    "complex number": ({b"complex": True, b"data": "1j"}, "complex"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_that_lie_are_refused(case):
    value, words = REFUSED[case]
    with pytest.raises(CodingError) as caught:
        unpack(msgpack.packb({"a": value}))
    assert words in str(caught.value)


BYTES = {
    "empty": (b"", "ends early"),
    "not used": (b"\xc1", "no meaning"),
    "extension": (msgpack.packb(msgpack.ExtType(4, b"1234")), "extension type"),
    "time stamp": (msgpack.packb(msgpack.Timestamp(1)), "extension type"),
    "long extension": (b"\xc9\xff\xff\xff\xff\x01", "extension type"),
    "cut": (b"\x81\xa1a\xcb\x00", "ends early"),
    "trailing": (b"\x80\x80", "followed by 1 more"),
    "not UTF-8": (b"\x81\xa2\xff\xfe\x01", "not UTF-8"),
    "twice": (b"\x82\xa1a\x01\xa1a\x02", "'a' twice"),
    "twice below": (b"\x81\xa1b\x82\xa1a\x01\xa1a\x02", "'a' twice"),
    "key of bytes": (b"\x81\xc4\x01a\x01", "must be text, got b'a'"),
    "key of a number": (b"\x81\x01\x01", "neither text nor bytes"),
    "key of a list": (b"\x81\x90\x01", "neither text nor bytes"),
    "key of a map": (b"\x81\x80\x01", "neither text nor bytes"),
    "4 GiB of bytes": (b"\xc6\xff\xff\xff\xff", "ends early"),
    "4 GiB of text": (b"\xdb\xff\xff\xff\xff", "ends early"),
    "a long list": (b"\xdd\xff\xff\xff\xff", "more than 32768 values"),
    "a long map": (b"\xdf\xff\xff\xff\xff", "more than 32768 values"),
    "many values": (b"\xdc\x7f\xff" + b"\x91\x90" * 0x7FFF, "more than 32768 values"),
    "deep lists": (b"\x91" * 100_000, "nested more than 32"),
    "deep maps": (b"\x81\xa1a" * 100_000, "nested more than 32"),
}


@pytest.mark.parametrize("case", BYTES)
def test_bytes_that_are_no_message_are_refused(case):
    message, words = BYTES[case]
    with pytest.raises(CodingError) as caught:
        unpack(message)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


def test_announced_lengths_allocate_nothing():
    nested = b"\xdc\x7f\x00" * 30
    tracemalloc.start()
    for message in (nested, *(message for message, _ in BYTES.values()), b"\xdd\x00\x00\x7f\x00" * 30):
        with pytest.raises(CodingError):
            unpack(message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # 32767 small lists, at most


def test_the_bounds_are_where_they_are_said_to_be():
    deep = []
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    assert unpack(msgpack.packb(deep))[0] == deep
    with pytest.raises(CodingError):
        unpack(msgpack.packb([deep]))
    assert len(unpack(msgpack.packb([0] * (MAX_VALUES - 1)))[0]) == MAX_VALUES - 1
    with pytest.raises(CodingError):
        unpack(msgpack.packb([0] * MAX_VALUES))


@pytest.mark.parametrize(
    "value",
    [
        {"a": np.array([object()])},
        {"a": np.zeros(2, np.complex64)},
        {"a": np.zeros(2, [("x", "f4")])},
        {"a": np.array(["text"])},
        {"a": np.datetime64(1, "s")},
        {"a": np.longdouble(1)},
        {"a": object()},
        {"a": {1, 2}},
        {"a": 2**64},
        {"a": "\ud800"},
    ],
    ids=[
        "objects",
        "complex",
        "structured",
        "text",
        "time",
        "long double",
        "object",
        "set",
        "2^64",
        "half a letter",
    ],
)
def test_what_cannot_be_sent_is_refused(value):
    for coding in CODINGS:
        with pytest.raises(CodingError, match="cannot be"):
            pack(value, coding)


def test_a_circle_is_refused():
    circle = []
    circle.append(circle)
    with pytest.raises(CodingError, match="cannot be written"):
        pack({"a": circle})


def test_unknown_codings_and_frames_of_text_are_refused():
    with pytest.raises(CodingError, match="must be one of openpi, msgpack-numpy"):
        pack({}, "pickle")
    with pytest.raises(CodingError, match="must be bytes"):
        unpack("text")


def _messages():
    value = {
        "observation.images.top": np.arange(36, dtype=np.uint8).reshape(3, 4, 3),
        "state": np.linspace(0, 1, 5).astype(np.float32),
        "prompt": "pick up the cube",
        "numbers": [1, -2, 3.5, None, True],
        "scalar": np.float32(1.5),
        "vla/continue": {"actions": np.zeros((2, 3)), "delay": 1},
    }
    return [pack(value, coding) for coding in CODINGS]


def test_damaged_messages_are_read_or_refused_and_nothing_else():
    dice = random.Random(0)
    counts = {"read": 0, "refused": 0}
    for _ in range(6000):
        message = bytearray(dice.choice(_MESSAGES))
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(message))
            kind = dice.randrange(4)
            if kind == 0:
                message[place] = dice.randrange(256)
            elif kind == 1:
                del message[place : place + dice.randint(1, 5)]
            elif kind == 2:
                message[place:place] = bytes(dice.randrange(256) for _ in range(dice.randint(1, 5)))
            else:
                message[place:place] = struct.pack(">BI", dice.choice((0xC6, 0xDB, 0xDD, 0xDF)), 2**31)
        counts["read" if _survives(bytes(message)) else "refused"] += 1
    assert min(counts.values()) > 100


_MESSAGES = _messages()


def test_random_bytes_are_read_or_refused_and_nothing_else():
    dice = random.Random(1)
    for _ in range(6000):
        _survives(bytes(dice.randrange(256) for _ in range(dice.randint(0, 60))))


def _survives(message):
    """Whether a message is read; then it can be written again and means the same."""
    try:
        value, coding = unpack(message)
    except CodingError as error:
        if len(str(error)) > 400:
            raise ValueError("a message of this length is not a sentence") from error
        return False
    again, _ = unpack(pack(value, coding))
    assert repr(again) == repr(value)
    return True


@pytest.mark.slow
def test_refused_messages_leave_no_memory_behind():
    def once():
        for message in _MESSAGES:
            for end in range(0, len(message), 3):
                _survives(message[:end])

    once()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(5):
        once()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 20_000
