"""Stream weights from a checkpoint into a module or into another file.

Neither holds a second copy of the weights. Where values need no conversion, the file is read straight
into the module's memory; otherwise values pass through a small staging buffer, which stays in
the processor's cache between reading, converting and writing.
"""

import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from vla.atomic import SaveError
from vla.errors import WeightsError
from vla.machine import cores
from vla.types import ProgressCallback
from vla.weights import memory
from vla.weights.files.safetensors import DTYPES, METADATA_KEY
from vla.weights.finite import first_not_finite, raw_bytes
from vla.weights.tensors import BLOCK_BYTES, Piece, TensorInfo, TensorReader

STAGING_BYTES = 2**21
"""Bytes that are converted at once."""

_SERIAL_NUMEL = 2**15 - 2**6
"""Elements below which torch copies in the calling thread.

Waking its own threads for each block costs more than it gains, several times more on a busy machine: 1 GiB
of float32 into bfloat16 by two readers took 0.25 s with them and 0.12 s without.
"""

MAX_THREADS = 8
"""Most reading threads; there are never more than processors."""

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Fill(NamedTuple):
    """A tensor of zeros to write, which has no source."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def fill_module(
    module: nn.Module,
    pieces: Mapping[str, Piece],
    reader: TensorReader,
    *,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> None:
    """Give every parameter of a module its values, in new memory.

    The module changes only if everything succeeds. Shared parameters stay shared, `requires_grad` stays
    as it was, buffers are left alone.

    Args:
        module: Usually on the meta device, so that it holds no memory before.
        pieces: How each parameter is made, by its name; of a shared parameter one name is enough.
        reader: Reads the values.
        dtype: Dtype of the parameters.
        device: Device of the parameters; None is the CPU.

    Raises:
        WeightsError: A value cannot be read, is not finite, or does not fit into `dtype`.
    """
    names_of: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), (parameter, []))[1].append(name)
    made: list[tuple[nn.Parameter, Piece, Tensor]] = []
    for parameter, names in names_of.values():
        piece = next((pieces[name] for name in names if name in pieces), None)
        assert piece is not None, f"no piece for {names[0]}"
        assert piece.shape == tuple(parameter.shape), f"{names[0]}: {piece.shape}, not {parameter.shape}"
        made.append((parameter, piece, memory.empty(piece.shape, dtype, device)))
    order = _reading_order(reader)
    made.sort(key=lambda one: order(one[1]))
    staging = _Staging(reader)
    jobs = [job for _, piece, out in made for job in _fill_jobs(staging, piece, out)]
    _run(jobs, _num_threads(reader))
    for old, _, out in made:
        new = nn.Parameter(out, requires_grad=old.requires_grad)
        for name in names_of[id(old)][1]:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, new)


def write_tensors(
    folder: Path | str,
    items: Mapping[str, Piece | Fill],
    reader: TensorReader,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str],
    max_shard_bytes: int | None,
    stem: str = "model",
    progress: ProgressCallback | None = None,
) -> list[Path]:
    """Write safetensors, piece by piece; sharded as Hugging Face does where there is too much for one file.

    The memory it takes does not grow with the weights: a block at a time, or one layer where a piece has an
    `op` (and what tensorstore must decode at once for it). Use `vla.atomic.atomic_folder` around it, which
    also sees to it that the bytes are on disk.

    Args:
        folder: Exists; the files must not.
        items: What to write under each name.
        reader: Reads the values.
        dtype: Dtype of all floating-point tensors; None keeps what is stored.
        metadata: Free text for the header of every file; "format" is "pt" where it does not say otherwise.
        max_shard_bytes: Bytes of values in a file at most (a larger tensor gets a file of its own); None
            writes one file.
        stem: File names start with this.
        progress: Called with the bytes written so far and all bytes.

    Returns:
        The files: `<stem>.safetensors`, or `<stem>-00001-of-0000N.safetensors` and so on and
        `<stem>.safetensors.index.json`.

    Raises:
        WeightsError: A value cannot be read, is not finite, or does not fit into `dtype`.
        SaveError: The disk is full, or the folder cannot be written. No file is left.
    """
    folder = Path(folder)
    entries = {name: _Entry(item, _written_info(item, dtype)) for name, item in items.items()}
    shards = _shards(reader, entries, max_shard_bytes, stem)
    total = sum(entry.info.num_bytes for entry in entries.values())
    texts = {"format": "pt", **metadata}
    staging, advance = _Staging(reader), _counter(progress, total)
    written: list[Path] = []
    is_whole = False
    try:
        for file_name, names in shards.items():
            written.append(folder / file_name)
            with written[-1].open("xb", buffering=0) as file:
                _write_file(file, {name: entries[name] for name in names}, texts, staging, advance)
        if len(shards) > 1:
            shard_of = {name: file_name for file_name, names in shards.items() for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(shard_of.items()))}
            written.append(folder / f"{stem}.safetensors.index.json")
            written[-1].write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        is_whole = True
    except FileExistsError as error:
        written.pop()  # not ours to remove
        raise SaveError(f"{error.filename} exists already; choose another folder or remove it.") from error
    except OSError as error:
        raise SaveError(f"Could not write {written[-1]}: {error.strerror}. Nothing was kept.") from error
    finally:
        if not is_whole:
            for path in written:
                path.unlink(missing_ok=True)
    return written


class _Entry(NamedTuple):
    """One tensor to write: where it comes from, and what is written."""

    item: Piece | Fill
    info: TensorInfo


class _Staging:
    """Reused memory through which values pass, one buffer per thread; gone with this object."""

    def __init__(self, reader: TensorReader) -> None:
        self.reader = reader
        self._own = threading.local()

    def blocks(self, piece: Piece, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, values) of a piece's result in the stored dtype; valid until the next one.

        `start` and `stop` choose rows of axis 0 of a piece that is read as it is.
        """
        if piece.op is not None or piece.index is not None or not piece.shape:
            value = self._whole(piece.stored, piece.index)
            value = value if piece.op is None else piece.op(value)
            yield 0, value if piece.rows is None else value[: piece.rows]
            return
        rest, dtype = piece.shape[1:], piece.info.dtype
        step = max(1, STAGING_BYTES // max(1, math.prod(rest) * dtype.itemsize))
        stop = piece.shape[0] if stop is None else stop
        for at in range(start, stop, step):
            block = self._buffer((min(step, stop - at), *rest), dtype)
            self.reader.read_rows(piece.stored, block, at)
            yield at, block

    def _whole(self, stored: str, index: int | None) -> Tensor:
        """Read a tensor or one entry of it, unless it is what was read last: keys and values share one."""
        if getattr(self._own, "holds", None) != (stored, index):
            shape, dtype = self.reader.info(stored)
            self._own.holds = None
            if index is None:
                value = self._buffer(shape, dtype)
                self.reader.read_rows(stored, value)
            else:
                value = self._buffer((1, *shape[1:]), dtype)
                self.reader.read_rows(stored, value, index)
                value = value[0]
            self._own.holds, self._own.value = (stored, index), value
        return self._own.value

    def _buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        num_bytes = math.prod(shape) * dtype.itemsize
        self._own.holds = None
        if getattr(self._own, "buffer", None) is None or self._own.buffer.numel() < num_bytes:
            self._own.buffer = self._own.value = None  # before the larger one is there
            self._own.buffer = memory.empty((max(num_bytes, STAGING_BYTES),), torch.uint8)
        return self._own.buffer[:num_bytes].view(dtype).view(shape)


def _fill_jobs(staging: _Staging, piece: Piece, out: Tensor) -> Iterator[Callable[[], None]]:
    """Yield what fills `out`, in parts small enough to keep several threads busy to the end."""
    is_as_stored = piece.op is None and out.dtype == piece.info.dtype and out.device.type == "cpu"
    if is_as_stored and piece.index is not None and piece.rows is None:
        yield lambda: staging.reader.read_rows(piece.stored, out[None], piece.index or 0)
        return
    if piece.op is not None or piece.index is not None or not piece.shape:
        yield lambda: _fill_rows(staging, piece, out, 0, None)
        return
    step = max(1, BLOCK_BYTES // max(1, math.prod(piece.shape[1:]) * piece.info.dtype.itemsize))
    for start in range(0, piece.shape[0], step):
        stop = min(start + step, piece.shape[0])
        if is_as_stored:
            yield lambda at=start, rows=out[start:stop]: staging.reader.read_rows(piece.stored, rows, at)
        else:
            yield lambda at=start, end=stop: _fill_rows(staging, piece, out, at, end)


def _fill_rows(staging: _Staging, piece: Piece, out: Tensor, start: int, stop: int | None) -> None:
    for at, block in staging.blocks(piece, start, stop):
        target = out[at : at + len(block)] if out.ndim else out
        if out.device.type == "cpu":
            _copy(target, block)
            _refuse_overflow(staging.reader, piece, target)
        else:
            target.copy_(_converted(staging.reader, piece, block, out.dtype))


def _converted(reader: TensorReader, piece: Piece, block: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a block as contiguous values of `dtype`."""
    if block.dtype == dtype:
        return block.contiguous()
    converted = torch.empty(block.shape, dtype=dtype)
    _copy(converted, block)
    _refuse_overflow(reader, piece, converted)
    return converted


def _copy(target: Tensor, values: Tensor) -> None:
    """Copy on the CPU, with conversion."""
    if not values.is_contiguous() or values.numel() == 0:
        target.copy_(values)
        return
    parts = (one.view(-1).split(_SERIAL_NUMEL) for one in (target, values))
    for to, part in zip(*parts, strict=True):
        to.copy_(part)


def _refuse_overflow(reader: TensorReader, piece: Piece, values: Tensor) -> None:
    """Raise where a finite number became infinite in a narrower dtype."""
    stored = piece.info.dtype
    if values.dtype == stored or torch.finfo(values.dtype).max >= torch.finfo(stored).max:
        return
    at = first_not_finite(raw_bytes(values), values.dtype)
    if at is not None:
        raise WeightsError(
            f"'{piece.stored}' in {reader.file_of(piece.stored)} holds a number too large for "
            f"{values.dtype}; choose another dtype, {stored} for example."
        )


def _reading_order(reader: TensorReader) -> Callable[[Piece | Fill], tuple[int, int]]:
    """Return a sort key: tensors as the reader likes them, what is made of one together, zeros last."""
    rank = {name: i for i, name in enumerate(reader.infos)}

    def key(item: Piece | Fill) -> tuple[int, int]:
        return (len(rank), 0) if isinstance(item, Fill) else (rank[item.stored], item.index or 0)

    return key


def _num_threads(reader: TensorReader) -> int:
    if not reader.is_parallel or reader.total_bytes < 2 * BLOCK_BYTES:
        return 1
    return min(MAX_THREADS, cores())


def _run(jobs: list[Callable[[], None]], num_threads: int) -> None:
    """Run all jobs; the first error stops those that have not begun, and is raised."""
    if num_threads == 1:
        for job in jobs:
            job()
        return
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="weights")
    try:
        for future in [pool.submit(job) for job in jobs]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _written_info(item: Piece | Fill, dtype: torch.dtype | None) -> TensorInfo:
    shape, stored = (item.shape, item.dtype) if isinstance(item, Fill) else (item.shape, item.info.dtype)
    return TensorInfo(shape, dtype if dtype is not None and stored.is_floating_point else stored)


def _shards(
    reader: TensorReader, entries: Mapping[str, _Entry], max_bytes: int | None, stem: str
) -> dict[str, list[str]]:
    """Return the names that each file holds, in the order of their bytes."""
    groups: list[list[str]] = [[]]
    size = 0
    order = _reading_order(reader)
    for name in sorted(entries, key=lambda name: order(entries[name].item)):
        num_bytes = entries[name].info.num_bytes
        if max_bytes is not None and groups[-1] and size + num_bytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += num_bytes
    for group in groups:  # wide dtypes first: every tensor then lies at a multiple of its item's size
        group.sort(key=lambda name: -entries[name].info.dtype.itemsize)
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    numbered = (f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors" for i in itertools.count(1))
    return dict(zip(numbered, groups, strict=False))


def _write_file(
    file: BinaryIO,
    entries: Mapping[str, _Entry],
    metadata: Mapping[str, str],
    staging: _Staging,
    advance: Callable[[int], None],
) -> None:
    """Write one safetensors file: the length of the header, the header, the values without gaps."""
    header: dict[str, Any] = {METADATA_KEY: dict(metadata)}
    end = 0
    for name, (_, info) in entries.items():
        begin, end = end, end + info.num_bytes
        fields = {"dtype": _DTYPE_NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [begin, end]}
        header[name] = fields
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the values start at a multiple of 8
    _write_fully(file, memoryview(len(text).to_bytes(8, "little") + text))
    for item, info in entries.values():
        left = info.num_bytes
        for block in _value_blocks(staging, item, info):
            _write_fully(file, block)
            advance(len(block))
            left -= len(block)
        assert left == 0, f"{left} bytes were promised and not written"


def _value_blocks(staging: _Staging, item: Piece | Fill, info: TensorInfo) -> Iterator[memoryview]:
    """Yield a tensor's bytes as they are to be written."""
    if isinstance(item, Fill):
        zeros = memoryview(bytes(min(STAGING_BYTES, info.num_bytes)))
        for start in range(0, info.num_bytes, STAGING_BYTES):
            yield zeros[: info.num_bytes - start]
        return
    for _, block in staging.blocks(item):
        yield raw_bytes(_converted(staging.reader, item, block, info.dtype)).data


def _write_fully(file: BinaryIO, data: memoryview) -> None:
    while len(data):
        data = data[file.write(data) :]


def _counter(progress: ProgressCallback | None, total: int) -> Callable[[int], None]:
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(done, total)

    return advance
