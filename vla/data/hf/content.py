"""The images and videos of a table in its fingerprint: bytes of each one, so that any other is noticed.

Where a camera's images or videos together take up to 1 GiB, every byte counts. Where they take more, each
counts with its length and an equal share of its bytes, in pieces from its beginning to its end: another image
is noticed, while a single byte that differs between two pieces is not.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa

from vla.data.hf.columns import TableColumns, local_path
from vla.data.hub import refuse_pointer, refuse_pointer_content
from vla.data.images import check_image
from vla.data.lerobot.columns import Columns
from vla.data.lerobot.schema import Feature
from vla.errors import DatasetError

_BUDGET = 1 << 30  # bytes of one camera: SHA-256 takes about a second for them
_LEAST = 4096  # bytes of each image or video, however many there are
_PIECES = 4  # in which a share is read
_ENOUGH, _END = 1 << 16, 64  # bytes of an image's file that are read for its header and its end
_BATCH = 256  # rows; of images so many are in memory at once


class Digest(Protocol):
    """One of `hashlib`'s."""

    def update(self, data: Any, /) -> None:
        """Add bytes."""
        ...


def table_fingerprint(dataset: Any, read: Columns, columns: TableColumns) -> str:
    """Return the fingerprint of a `HuggingFaceDataset`: a hash of all that its items are made of.

    Args:
        dataset: The dataset, whose columns, episodes and cameras are settled.
        read: Its numbers and texts, of the selected episodes.
        columns: The table's columns.

    Raises:
        DatasetError: See `add_images` and `add_videos`.
    """
    digest = hashlib.sha256(f"{dataset.info.fps} {dataset.info.total_frames} {dataset.tasks}".encode())
    digest.update(repr([episode.index for episode in dataset.episodes]).encode())
    for chosen in (dataset.state_columns, dataset.action_columns):
        if len(chosen) > 1:
            digest.update(repr(chosen).encode())
    for key, values in sorted(read.numbers.items()):
        digest.update(f"{key} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    for key, text in sorted(read.texts.items()):
        digest.update(f"{key} {text.texts}".encode())
        digest.update(text.codes.tobytes())
    for camera in dataset.cameras:
        digest.update(camera.encode())
        if dataset.info.features[camera].dtype == "image":
            add_images(digest, columns, camera, read.file_rows)
        else:  # by their content: their names depend on where they are
            parts = [episode.videos[camera] for episode in dataset.episodes]
            files = [part.path for part in parts]
            places = {file: place for place, file in enumerate(dict.fromkeys(files))}
            digest.update(repr([(places[part.path], part.start) for part in parts]).encode())
            add_videos(digest, [Path(file) for file in files])
    return digest.hexdigest()[:32]


def add_images(digest: Digest, columns: TableColumns, key: str, rows: np.ndarray) -> None:
    """Add the images of a camera as they are stored, in the order of `rows`; each header is checked.

    An image counts alike in the table and in a file of its own. Only what seems to be cut
    off is decoded.

    Args:
        digest: Where they are added.
        columns: The table's columns.
        key: The camera's.
        rows: Rows of the table, int64 `[n]`.

    Raises:
        DatasetError: A row has no image, or a Git LFS pointer in its place, its file cannot be read, or it is
            cut off or of another size than that of the first row.
    """
    size_of_all = columns.features[key].shape[0], columns.features[key].shape[1]
    share = max(_LEAST, _BUDGET // len(rows))
    for row, image in zip(rows, _stored_images(columns, key, rows), strict=True):
        what = f"{columns.table.name}, row {row}: '{key}'"
        if image is None:
            raise DatasetError(f"{what} holds no image.")
        if isinstance(image, Path):
            _add_file(digest, image, share)
            _check_file(image, what, size_of_all)
            continue
        size, content = len(image), memoryview(image)
        refuse_pointer_content(bytes(content[:64]), what)
        if key not in columns.array_shapes:
            check_image(bytes(content), what, size_of_all)
        digest.update(b"%d " % size)
        for start, stop in _pieces(size, share):
            digest.update(content[start:stop])


def add_videos(digest: Digest, files: Sequence[Path]) -> None:
    """Add the content of video files, each once; raises `DatasetError` where one cannot be read."""
    distinct = dict.fromkeys(files)
    for file in distinct:
        _add_file(digest, file, max(_LEAST, _BUDGET // len(distinct)))


def _stored_images(columns: TableColumns, key: str, rows: np.ndarray) -> Iterator[Any]:
    """Yield each row's image: its bytes, the file that holds them, or None."""
    chosen = columns.table.rows.select_columns([key]).select(rows).with_format("arrow")
    for start in range(0, len(rows), _BATCH):
        stored = chosen[start : start + _BATCH][key]
        if key in columns.array_shapes:
            yield from _stored_arrays(columns, key, stored)
        else:
            for part in stored.chunks:
                yield from _stored_values(part, columns.table.root)


def _stored_arrays(columns: TableColumns, key: str, stored: pa.ChunkedArray) -> Iterator[Any]:
    """Yield each row's array of numbers as bytes; None where it is missing."""
    there = stored.is_valid().to_numpy()
    if not there.all():  # the first that is missing is what is told of
        yield from (b" " if is_there else None for is_there in there)
    else:
        feature = Feature(key, "uint8", columns.array_shapes[key])
        yield from (row.reshape(-1) for row in columns.as_array(stored, feature))


def _stored_values(part: pa.Array, root: Path) -> Iterator[Any]:
    if not pa.types.is_struct(part.type):
        yield from _contents(part)
        return
    names = [field.name for field in part.type]
    contents: Iterable[Any] = (
        _contents(part.field("bytes")) if "bytes" in names else itertools.repeat(None, len(part))
    )
    paths = part.field("path").to_pylist() if "path" in names else [None] * len(part)
    there = part.is_valid().to_numpy(zero_copy_only=False)
    for is_there, own, path in zip(there, contents, paths, strict=True):
        yield (own or (local_path(path, root) if path else None)) if is_there else None


def _contents(part: pa.Array) -> Iterator[memoryview | None]:
    """Yield each value of a column of bytes, without a copy: much faster than arrow's own scalars."""
    _, offsets, values = part.buffers()
    kind = np.int64 if pa.types.is_large_binary(part.type) else np.int32
    ends = np.frombuffer(offsets, kind)[part.offset : part.offset + len(part) + 1].tolist()
    content = memoryview(values if values is not None else b"")
    for start, stop, is_there in zip(
        ends, ends[1:], part.is_valid().to_numpy(zero_copy_only=False), strict=False
    ):
        yield content[start:stop] if is_there and stop > start else None


def _check_file(path: Path, what: str, size: tuple[int, int]) -> None:
    """As `check_image`, of an image in a file, of which little is read where that will do."""
    try:
        with path.open("rb") as file:
            data = file.read(_ENOUGH)
            if file.seek(0, 2) > _ENOUGH + _END:
                file.seek(-_END, 2)
                with suppress(DatasetError):
                    check_image(data + file.read(), what, size)
                    return
        check_image(path.read_bytes(), what, size)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from error


def _add_file(digest: Digest, path: Path, share: int) -> None:
    refuse_pointer(path)
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            digest.update(b"%d " % size)
            for start, stop in _pieces(size, share):
                _add_piece(digest, file, start, stop)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from error


def _add_piece(digest: Digest, file: BinaryIO, start: int, stop: int) -> None:
    file.seek(start)
    while start < stop and (data := file.read(min(stop - start, 1 << 20))):
        digest.update(data)
        start += len(data)


def _pieces(size: int, share: int) -> list[tuple[int, int]]:
    """Return which bytes of so many count: (start, stop), the first and the last byte among them."""
    if size <= share:
        return [(0, size)]
    length = share // _PIECES
    starts = [(size - length) * piece // (_PIECES - 1) for piece in range(_PIECES)]
    return [(start, start + length) for start in starts]
