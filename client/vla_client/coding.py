"""What crosses the wire: maps of numbers, text and arrays as msgpack, in the two codings that are in use.

openpi writes an array as a map with the key `__ndarray__`, the package msgpack-numpy with the key `nd`. Both
are read, with keys of bytes (as their authors write them) or of text, and a message is answered in the coding
it came in.

Messages come from a network, so they are read by a reader of our own: nothing is allocated before the bytes
for it are there, values and nesting are counted, and no data can name code or a type that holds references.
msgpack's own reader makes room for whatever length a message announces, and makes objects of sixty bytes of
single ones.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NoReturn

import msgpack
import numpy as np

from vla_client.errors import CodingError

CODINGS = ("openpi", "msgpack-numpy", "openpi-text", "msgpack-numpy-text")
"""Names of the codings; those that end with `-text` have keys of text."""

MAX_DEPTH = 32
"""How deep maps and lists may lie in each other."""

MAX_VALUES = 2**15
"""Values in one message; an array counts as a handful, however large."""

MAX_DIMENSIONS = 8

_MAX_ELEMENTS = 2**31
_TYPES = [
    np.dtype(name) for name in ("bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
]


def _type_names() -> dict[str, np.dtype]:
    """Return the types of elements by everything that names them: `"<f4"`, `"f4"`, `"float32"`."""
    names = {}
    for dtype in _TYPES:
        names[dtype.name] = names[dtype.str[1:]] = dtype
        for order in "<>=|":
            if order != "|" or dtype.itemsize == 1:
                names[order + dtype.str[1:]] = np.dtype(order + dtype.str[1:])
    return names


_BY_NAME = _type_names()


def pack(value: Any, coding: str = "openpi") -> bytes:
    """Return a message: openpi's and msgpack-numpy's bytes exactly.

    Args:
        value: Maps with keys of text, lists, text, bytes, numbers, None, and arrays and scalars of numpy
            (bool, integers, floats up to 64 bits). Tuples become lists.
        coding: One of `CODINGS`; how arrays and scalars of numpy are written.

    Raises:
        CodingError: The value holds something else, is nested too deep, or the coding is not known.
    """
    if coding not in CODINGS:
        raise CodingError(f"A coding must be one of {', '.join(CODINGS)}, got {coding!r}.")
    write = _write_openpi if coding.startswith("openpi") else _write_msgpack_numpy
    key = _text if coding.endswith("-text") else _bytes

    def default(one: Any) -> Any:
        if isinstance(one, (np.ndarray, np.generic)):
            if one.dtype.newbyteorder("=") not in _TYPES:
                raise CodingError(
                    f"An array of type {one.dtype} cannot be sent; send bool, integers or floats of at most "
                    "64 bits."
                )
            return {key(name): part for name, part in write(one).items()}
        raise CodingError(f"A value of type {type(one).__name__} cannot be sent: {repr(one)[:80]}.")

    try:
        message = msgpack.packb(value, default=default, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, CodingError):
            raise
        raise CodingError(f"The message cannot be written: {error}.") from error
    assert message is not None  # only a Packer that keeps its buffer returns nothing
    return message


def unpack(message: bytes | bytearray | memoryview) -> tuple[Any, str]:
    """Return what a message holds, and the coding of its first array or scalar ("openpi" without one).

    Arrays come back in the machine's byte order and cannot be written to: they are views of the message where
    its bytes lie as they must, else copies.

    Raises:
        CodingError: The message is not msgpack; holds a type, a size or a key that is not taken; or has more
            than `MAX_VALUES` values or `MAX_DEPTH` levels.
    """
    if not isinstance(message, (bytes, bytearray, memoryview)):
        raise CodingError(f"A message must be bytes (a binary frame), got {type(message).__name__}.")
    reader = _Reader(bytes(message))
    value = _own(reader.value(0))
    if left := len(reader.view) - reader.at:
        raise CodingError(f"The message is followed by {left} more bytes; a frame holds one value.")
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise CodingError(f"The keys of a message must be text, got {_shown(name)}.")
    return value, reader.coding or "openpi"


def _write_openpi(one: np.ndarray | np.generic) -> dict[str, Any]:
    if isinstance(one, np.ndarray):
        return {"__ndarray__": True, "data": one.tobytes(), "dtype": one.dtype.str, "shape": one.shape}
    return {"__npgeneric__": True, "data": one.item(), "dtype": one.dtype.str}


def _write_msgpack_numpy(one: np.ndarray | np.generic) -> dict[str, Any]:
    if isinstance(one, np.ndarray):
        return {"nd": True, "type": one.dtype.str, "kind": b"", "shape": one.shape, "data": one.tobytes()}
    return {"nd": False, "type": one.dtype.str, "data": one.tobytes()}


def _text(name: str) -> str:
    return name


def _bytes(name: str) -> bytes:
    return name.encode()


def _own(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def _shown(value: Any) -> str:
    text = repr(bytes(value[:80]) if isinstance(value, memoryview) else value)
    return text if len(text) <= 80 else f"{text[:80]}..."


_NUMBERS = {
    0xCA: struct.Struct(">f"),
    0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"),
    0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"),
    0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_SIZED = {  # first byte: what it is, and how many bytes its length takes
    0xC4: ("bytes", 1),
    0xC5: ("bytes", 2),
    0xC6: ("bytes", 4),
    0xD9: ("text", 1),
    0xDA: ("text", 2),
    0xDB: ("text", 4),
    0xDC: ("list", 2),
    0xDD: ("list", 4),
    0xDE: ("map", 2),
    0xDF: ("map", 4),
}


class _Reader:
    """Reads one message; `at` is the next byte, `left` how many values are still allowed."""

    def __init__(self, message: bytes) -> None:
        self.view = memoryview(message)
        self.at = 0
        self.left = MAX_VALUES
        self.coding: str | None = None

    def value(self, depth: int) -> Any:
        """Return the next value; bytes as a view of the message."""
        self.left -= 1
        if self.left < 0:
            self.refuse(f"has more than {MAX_VALUES} values; send long lists as arrays")
        start = self.at
        first = self.take(1)[0]
        if first < 0x80:
            return first
        if first >= 0xE0:
            return first - 0x100
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            number = _NUMBERS[first]
            return number.unpack(self.take(number.size))[0]
        if first < 0x90:
            kind, length = "map", first & 0x0F
        elif first < 0xA0:
            kind, length = "list", first & 0x0F
        elif first < 0xC0:
            kind, length = "text", first & 0x1F
        elif first in _SIZED:
            kind, size = _SIZED[first]
            length = int.from_bytes(self.take(size), "big")
        else:
            self.refuse(f"holds an extension type or a byte of no meaning (0x{first:02x}) at byte {start}")
        if kind == "bytes":
            return self.take(length)
        if kind == "text":
            return self.text(length)
        if depth >= MAX_DEPTH:
            self.refuse(f"is nested more than {MAX_DEPTH} levels deep")
        if length > self.left:
            self.refuse(f"has more than {MAX_VALUES} values (byte {start} announces {length})")
        if kind == "list":
            return [_own(self.value(depth + 1)) for _ in range(length)]
        return self.map(length, depth)

    def take(self, count: int) -> memoryview:
        """Return the next bytes."""
        end = self.at + count
        if end > len(self.view):
            self.refuse(
                f"ends early: byte {self.at} announces {count} more, {len(self.view) - self.at} are there"
            )
        part = self.view[self.at : end]
        self.at = end
        return part

    def text(self, length: int) -> str:
        start = self.at
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError:
            self.refuse(f"holds text at byte {start} that is not UTF-8")

    def map(self, length: int, depth: int) -> Any:
        """Return a map, or the array or scalar that it stands for."""
        found: dict[Any, Any] = {}
        for _ in range(length):
            key = _own(self.value(depth + 1))
            if not isinstance(key, (str, bytes)):
                self.refuse(f"has a key that is neither text nor bytes: {_shown(key)}")
            if key in found:
                self.refuse(f"has the key {_shown(key)} twice in one map")
            found[key] = self.value(depth + 1)
        for key, coding, decode in (
            ("__ndarray__", "openpi", _openpi_array),
            ("__npgeneric__", "openpi", _openpi_scalar),
            ("nd", "msgpack-numpy", _msgpack_numpy),
        ):
            for marker, form in ((key.encode(), bytes), (key, str)):
                if marker in found and (key != "nd" or isinstance(found[marker], bool)):
                    self.coding = self.coding or (coding if form is bytes else f"{coding}-text")
                    return decode(
                        {name: found[_as(form, name)] for name in _NAMES if _as(form, name) in found}
                    )
        if found.get(b"complex") is True:
            self.refuse("holds a complex number; send its parts as floats")
        return {key: _own(value) for key, value in found.items()}

    def refuse(self, what: str) -> NoReturn:
        raise CodingError(f"The message {what}.")


_NAMES = ("__ndarray__", "__npgeneric__", "nd", "data", "dtype", "type", "kind", "shape")


def _as(form: type, name: str) -> str | bytes:
    return name if form is str else name.encode()


def _openpi_array(parts: dict[str, Any]) -> np.ndarray:
    return _array(parts, _type(parts, "dtype"))


def _openpi_scalar(parts: dict[str, Any]) -> np.generic:
    dtype = _type(parts, "dtype").newbyteorder("=")
    data = _part(parts, "data")
    fits = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))
    if not isinstance(data, fits) or (isinstance(data, bool) and dtype.kind != "b"):
        raise CodingError(
            f"A scalar of type {dtype} holds {_shown(data)}, which is not a number of that type."
        )
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= data <= np.iinfo(dtype).max:
        raise CodingError(f"A scalar of type {dtype} holds {data}, which is outside its range.")
    if dtype.kind == "f" and math.isfinite(data) and abs(data) > float(np.finfo(dtype).max):
        raise CodingError(f"A scalar of type {dtype} holds {data}, which is outside its range.")
    return dtype.type(data)


def _msgpack_numpy(parts: dict[str, Any]) -> np.ndarray | np.generic:
    if _own(parts.get("kind", b"")) not in (b"", ""):
        raise CodingError(
            f"An array has the kind {_shown(parts['kind'])}; structured and object types are not taken."
        )
    dtype = _type(parts, "type")
    if parts["nd"]:
        return _array(parts, dtype)
    return _array({**parts, "shape": []}, dtype)[()]


def _part(parts: dict[str, Any], name: str) -> Any:
    if name not in parts:
        raise CodingError(f"An array or scalar lacks its '{name}'; it has {', '.join(parts)}.")
    return parts[name]


def _type(parts: dict[str, Any], key: str) -> np.dtype:
    name = _part(parts, key)
    if isinstance(name, memoryview):
        name = bytes(name[:32]).decode("ascii", "replace")
    dtype = _BY_NAME.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise CodingError(
            f"An array has the type {_shown(name)}; bool, integers and floats of at most 64 bits are taken, "
            'such as "<f4" or "|u1".'
        )
    return dtype


def _array(parts: dict[str, Any], dtype: np.dtype) -> np.ndarray:
    shape, data = _part(parts, "shape"), _part(parts, "data")
    if not isinstance(shape, list) or any(isinstance(n, bool) or not isinstance(n, int) for n in shape):
        raise CodingError(f"An array has the shape {_shown(shape)}; it must be a list of whole numbers.")
    if len(shape) > MAX_DIMENSIONS:
        raise CodingError(f"An array has {len(shape)} dimensions; at most {MAX_DIMENSIONS} are taken.")
    if any(n < 0 for n in shape) or math.prod(n or 1 for n in shape) > _MAX_ELEMENTS:
        raise CodingError(f"An array has the shape {_shown(shape)}, which is negative or too large.")
    if not isinstance(data, memoryview):
        raise CodingError(f"An array's data must be bytes, got {type(data).__name__}.")
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise CodingError(
            f"An array of type {dtype} and shape {shape} takes {math.prod(shape) * dtype.itemsize} bytes, "
            f"got {len(data)}."
        )
    array: np.ndarray = np.ndarray(shape, dtype, buffer=data)
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise CodingError("An array of type bool holds bytes other than 0 and 1.")
    if not (array.flags.aligned and dtype.isnative):
        array = array.astype(dtype.newbyteorder("="))
    array.flags.writeable = False
    return array
