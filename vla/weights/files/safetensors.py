"""Reading safetensors, single and sharded, by ordinary file reads into memory that is allocated already.

The safetensors library maps the file: every page that was copied out of the mapping stays in the resident
set next to the copy, so loading through it peaks at twice the size of the weights. It has no way to read a
header without mapping either, which is why the header is parsed and checked against the file here. The format
is 8 bytes of little-endian header length, a JSON header, then the values without gaps.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vla.errors import WeightsError, remedy
from vla.weights.files.listing import safetensors_in
from vla.weights.finite import CHUNK_BYTES, first_not_finite, not_finite_error, raw_bytes
from vla.weights.tensors import TensorInfo, TensorReader

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
METADATA_KEY = "__metadata__"
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's name of each dtype that is read and written."""

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


class Entry(NamedTuple):
    """One tensor of a file: its shape and dtype, and where its bytes begin."""

    info: TensorInfo
    begin: int


class Header(NamedTuple):
    """The header of a file, checked against the file's size."""

    entries: dict[str, Entry]  # in the order of their bytes
    metadata: dict[str, str]


class SafetensorsReader(TensorReader):
    """The tensors of one or several safetensors files; any number of threads may read at once."""

    is_parallel = True

    def __init__(self, folder: Path, names: list[str]) -> None:
        """Open the files and check their headers.

        Args:
            folder: Where the files lie.
            names: File names, in reading order.

        Raises:
            WeightsError: A file is absent or damaged, or two files hold a tensor of the same name.
        """
        self.folder = folder
        self._tensors: dict[str, tuple[Path, BinaryIO, Entry]] = {}
        metadata: dict[str, str] = {}
        with ExitStack() as stack:
            for name in names:
                path = folder / name
                file = stack.enter_context(_open(path))
                header = read_header(file, path)
                metadata |= header.metadata
                for key, entry in header.entries.items():
                    if key in self._tensors:
                        raise WeightsError(
                            f"'{key}' lies in {self._tensors[key][0]} and in {path} as well; {remedy(path)}."
                        )
                    self._tensors[key] = (path, file, entry)
            self._stack = stack.pop_all()
        self.metadata = metadata
        self.infos = {key: entry.info for key, (_, _, entry) in self._tensors.items()}

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def file_of(self, name: str) -> Path:
        """Return the file that holds the tensor."""
        self.info(name)
        return self._tensors[name][0]

    def read_rows(self, name: str, out: Tensor, start: int = 0) -> None:
        """Fill `out` with the rows of axis 0 from `start` on; see `TensorReader.read_rows`."""
        info = self.info(name)
        path, file, entry = self._tensors[name]
        row = math.prod(info.shape[1:])
        assert out.dtype == info.dtype
        assert out.shape[1:] == info.shape[1:]
        assert (start + len(out) <= info.shape[0]) if info.shape else start == 0 == out.ndim
        raw, first = raw_bytes(out), start * row
        # Chunk by chunk, so that the check meets the values while they are still in the cache.
        for at in range(0, raw.size, CHUNK_BYTES):
            chunk = raw[at : at + CHUNK_BYTES]
            _read_fully(file, path, chunk, entry.begin + first * info.dtype.itemsize + at, name)
            bad = first_not_finite(chunk, info.dtype)
            if bad is not None:
                bad += at // info.dtype.itemsize
                raise not_finite_error(name, path, out.reshape(-1)[bad].item(), first + bad, info.shape)


def open_safetensors(folder: Path) -> SafetensorsReader:
    """Open `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

    Raises:
        WeightsError: Both are there and disagree, a shard is absent, damaged, or holds other tensors than the
            index says.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if not index.exists():
        return SafetensorsReader(folder, [SINGLE_FILE])
    shard_of = read_index(index)
    shards = sorted(set(shard_of.values()))
    if single.exists() and SINGLE_FILE not in shards:
        raise WeightsError(
            f"{folder} holds both {SINGLE_FILE} and {INDEX_FILE}, which lists other files: two checkpoints "
            "in one folder. Remove the one that is not meant."
        )
    if absent := [name for name in shards if not (folder / name).exists()]:
        raise WeightsError(
            f"{folder} lacks {len(absent)} of the {len(shards)} shards that {INDEX_FILE} lists: "
            f"{_some(absent)}: it is incomplete; {remedy(folder)}."
        )
    listed = {_SHARD.sub("", name) for name in shards if _SHARD.search(name)}
    alongside = [path.name for path in safetensors_in(folder) if _SHARD.search(path.name)]
    if unlisted := [name for name in alongside if _SHARD.sub("", name) in listed and name not in shards]:
        raise WeightsError(
            f"{folder} holds {_some(unlisted)}, which {INDEX_FILE} does not list: the index is damaged or "
            f"of another checkpoint; {remedy(folder)}."
        )
    reader = SafetensorsReader(folder, shards)
    try:
        _compare(reader, shard_of, index)
    except WeightsError:
        reader.close()
        raise
    return reader


def read_index(path: Path) -> dict[str, str]:
    """Return which file holds each tensor, from `model.safetensors.index.json`.

    Raises:
        WeightsError: It is not JSON, lists no tensors, or names a file outside its folder.
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON ({error}); {remedy(path)}.") from error
    shard_of = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shard_of, dict) or not shard_of:
        raise WeightsError(
            f"{path} has no 'weight_map' that says which file holds each tensor; {remedy(path)}."
        )
    for key, name in shard_of.items():
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise WeightsError(
                f"{path} puts '{key}' into {name!r}, which is not a file name; {remedy(path)}."
            )
    return shard_of


def read_header(file: BinaryIO, path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Args:
        file: Open for reading, unbuffered.
        path: Its name, for messages.

    Raises:
        WeightsError: The file is empty, cut off, longer than it says, not a safetensors file at all, or its
            header contradicts itself.
    """
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        state = "is empty" if size == 0 else f"has {size} bytes, too few for a safetensors file"
        raise WeightsError(f"{path} {state}; {remedy(path)}.")
    head = np.empty(8, np.uint8)
    _read_fully(file, path, head, 0, "the header")
    length = int(head.view("<u8")[0])
    if bytes(head) == b"version ":
        raise WeightsError(
            f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` or use `hf download`."
        )
    if length > MAX_HEADER_BYTES:
        raise WeightsError(
            f"{path} is not a safetensors file: it starts with {bytes(head)!r}, which announces a header of "
            f"{length} bytes; {remedy(path)}."
        )
    if length > size - 8:
        raise WeightsError(
            f"{path} is cut off: {size} bytes, its header alone needs {8 + length}; {remedy(path)}."
        )
    text = np.empty(length, np.uint8)
    _read_fully(file, path, text, 8, "the header")
    return _checked(text.tobytes(), path, 8 + length, size)


def _checked(text: bytes, path: Path, data_begin: int, size: int) -> Header:
    """Parse a header's JSON and check it against the file's size."""
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path} has a header that is not valid JSON ({error}); {remedy(path)}."
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} has a header that is not a JSON object; {remedy(path)}.")
    metadata = content.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError(f"{path} has a {METADATA_KEY} that is not a table of strings; {remedy(path)}.")
    spans = {key: _span(key, fields, path) for key, fields in content.items()}
    end = 0
    entries: dict[str, Entry] = {}
    for key, (info, begin) in sorted(spans.items(), key=lambda item: (item[1].begin, item[1].info.num_bytes)):
        if begin != end:
            raise WeightsError(
                f"{path}: the bytes of '{key}' begin at {begin}, those before it end at {end}; the header is "
                f"damaged, {remedy(path)}."
            )
        entries[key] = Entry(info, data_begin + begin)
        end = begin + info.num_bytes
    if data_begin + end != size:
        which = "is cut off" if data_begin + end > size else "is longer than its header says"
        raise WeightsError(f"{path} {which}: {size} bytes instead of {data_begin + end}; {remedy(path)}.")
    return Header(entries, metadata)


def _span(key: str, fields: Any, path: Path) -> Entry:
    """One tensor's line of the header, where its bytes begin counted from the end of the header."""
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{path}: the header describes '{key}' as {fields!r}; {remedy(path)}.")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise WeightsError(
            f"{path}: '{key}' is stored as {dtype}, which is not read here; convert it to one of "
            f"{', '.join(DTYPES)} first."
        )
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise WeightsError(f"{path}: '{key}' has shape {shape} and offsets {offsets}; {remedy(path)}.")
    info = TensorInfo(tuple(shape), DTYPES[dtype])
    if offsets[1] - offsets[0] != info.num_bytes:
        raise WeightsError(
            f"{path}: '{key}' has shape {shape} in {dtype}, which is {info.num_bytes} bytes, but the header "
            f"gives it {offsets[1] - offsets[0]}; {remedy(path)}."
        )
    return Entry(info, offsets[0])


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' appears twice")
    return found


def _compare(reader: SafetensorsReader, shard_of: Mapping[str, str], index: Path) -> None:
    """Raise unless every tensor lies in the shard that the index names, and no other tensor anywhere."""
    problems = []
    for key, name in shard_of.items():
        if key not in reader.infos:
            problems.append(f"{name} lacks '{key}'")
        elif reader.file_of(key).name != name:
            problems.append(f"'{key}' lies in {reader.file_of(key).name} instead of {name}")
    unlisted = [key for key in reader.infos if key not in shard_of]
    problems += [f"{reader.file_of(key).name} holds '{key}', which is not listed" for key in unlisted]
    if problems:
        raise WeightsError(
            f"{index} and its shards disagree: {_some(problems, '; ')}. They are of different checkpoints; "
            f"{remedy(index)}."
        )


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise WeightsError(f"{path} cannot be opened: {error.strerror}.") from error


def _read_fully(file: BinaryIO, path: Path, out: np.ndarray, position: int, what: str) -> None:
    """Fill `out` from the file; `preadv` keeps no position, so threads may share the file."""
    view = out.data
    while len(view):
        try:
            got = os.preadv(file.fileno(), [view], position)
        except OSError as error:
            raise WeightsError(f"{path} cannot be read at '{what}': {error.strerror}.") from error
        if got == 0:
            raise WeightsError(
                f"{path} ended while '{what}' was read: it changed, or is cut off; {remedy(path)}."
            )
        view, position = view[got:], position + got


def _some(items: list[str], separator: str = ", ") -> str:
    return separator.join(items[:3]) + (f"{separator}and {len(items) - 3} more" if len(items) > 3 else "")
