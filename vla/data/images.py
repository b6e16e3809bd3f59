"""Images stored in parquet (features of dtype `image`): encoded bytes, one per row, decoded on demand.

An image whose EXIF data say that the camera was turned is turned upright, as `datasets` and LeRobot turn it.
"""

import io
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vla.data.hub import refuse_pointer, refuse_pointer_content
from vla.errors import DatasetError

_FIRST_BYTES = 1 << 16
_ON_THEIR_SIDE = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error)
_EXIF_OF_PNG = (b"eXIf", b"type exif", b"com.adobe.xmp")


class ParquetImages:
    """Reads single images, a row group at a time; the last few row groups stay in memory encoded."""

    def __init__(self, capacity: int = 4) -> None:
        self._capacity = capacity
        self._groups: OrderedDict[tuple[Path, str, int], pa.ChunkedArray] = OrderedDict()
        self._starts: dict[Path, np.ndarray] = {}

    def read(self, path: Path, row: int, key: str) -> np.ndarray:
        """Decode the image of one row.

        Args:
            path: Parquet file.
            row: Row within the file.
            key: Column.

        Returns:
            uint8 `[h, w, 3]`.

        Raises:
            DatasetError: The file or column cannot be read, or the bytes are not an image.
        """
        try:
            group, offset = self._locate(path, row)
            value = self._group(path, key, group)[offset].as_py()
        except KeyError as error:
            raise DatasetError(f"{path} has no column '{key}' with the camera's images.") from error
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{path}, row {row}: '{key}' cannot be read: {error}") from error
        return decode_image(value, f"{path}, row {row}: '{key}'")

    def _locate(self, path: Path, row: int) -> tuple[int, int]:
        if path not in self._starts:
            metadata = pq.read_metadata(path)
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            self._starts[path] = np.concatenate([[0], np.cumsum(sizes)])
        starts = self._starts[path]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return group, row - int(starts[group])

    def _group(self, path: Path, key: str, group: int) -> pa.ChunkedArray:
        place = (path, key, group)
        found = self._groups.pop(place, None)  # a single step each, so that threads do not meet in between
        if found is None:
            with pq.ParquetFile(path) as file:
                found = file.read_row_group(group, columns=[key], use_threads=False)[key]
        self._groups[place] = found
        with suppress(KeyError):  # another thread may have made room already
            while len(self._groups) > self._capacity:
                self._groups.popitem(last=False)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups": OrderedDict()}


def first_header(path: Path, key: str) -> tuple[tuple[int, int], str | None]:
    """Return (height, width) of the first image of a column, and why it has no colours, or None.

    Nothing is decoded, and little is read of the file.

    Raises:
        DatasetError: The file or column cannot be read, or holds no image.
    """
    try:
        with pq.ParquetFile(path, buffer_size=_FIRST_BYTES, pre_buffer=False) as file:
            if key not in file.schema_arrow.names:
                raise DatasetError(
                    f"{path} has no column '{key}' with the camera's images, as its dtype in "
                    "meta/info.json says."
                )
            if file.schema_arrow.names.count(key) > 1:
                raise DatasetError(f"{path} has two columns of one name, ['{key}']: rename or drop one.")
            batch = next(file.iter_batches(1, columns=[key], use_threads=False), None)
            value = batch[key][0].as_py() if batch is not None and len(batch) else None
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing: the dataset is incomplete.") from error
    except (pa.ArrowException, OSError) as error:
        refuse_pointer(path)
        raise DatasetError(f"{path}: '{key}' cannot be read: {error}") from error
    return image_header(value, f"{path}, row 0: '{key}'")


def image_header(value: Any, what: str) -> tuple[tuple[int, int], str | None]:
    """Return (height, width) of a stored image, and why it has no colours, or None; nothing is decoded.

    Args:
        value: Encoded bytes, or a dictionary with them under `bytes`.
        what: Which image, for messages.

    Raises:
        DatasetError: It is not an image.
    """
    with _opened(value, what) as (image, data):
        size = image.height, image.width
        if _orientation(image, data) in _ON_THEIR_SIDE:
            size = image.width, image.height
        return size, _depth_reason(image)


def check_size(found: Sequence[int], what: str, size: Sequence[int]) -> None:
    """Raise `DatasetError` unless an image of a table has the (height, width) of that of its first row."""
    if tuple(found) != tuple(size):
        raise DatasetError(
            f"{what} is {found[0]} high and {found[1]} wide, but that of row 0 is {size[0]} high and "
            f"{size[1]} wide: all images of a camera must have one size."
        )


def check_image(data: bytes, what: str, size: tuple[int, int]) -> None:
    """Compare a stored image's header with (height, width), and see whether its end is there.

    What is damaged in between is noticed where the image is decoded.

    Args:
        data: Encoded bytes.
        what: Which image, for messages.
        size: (height, width).

    Raises:
        DatasetError: It is not an image, of another size, or cut off.
    """
    found, reason = image_header(data, what)
    if reason:
        raise DatasetError(f"{what} shows distances, not colours: {reason}.")
    check_size(found, what, size)
    if _seems_cut(data):
        decode_image(data, what)  # the judge: some writers leave out the mark


def decode_image(value: Any, what: str) -> np.ndarray:
    """Decode a stored image, uint8 `[h, w, 3]`; arguments and errors as those of `image_header`.

    Raises:
        DatasetError: It is not an image, or shows distances.
    """
    with _opened(value, what) as (image, data):
        if reason := _depth_reason(image):
            raise DatasetError(f"{what} shows distances, not colours: {reason}.")
        upright = image if _orientation(image, data) == 1 else ImageOps.exif_transpose(image)
        return np.array(upright.convert("RGB"))


@contextmanager
def _opened(value: Any, what: str) -> Iterator[tuple[Image.Image, bytes]]:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise DatasetError(f"{what} holds no image (bytes are missing).")
    refuse_pointer_content(data, what)
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image, data
    except DatasetError:
        raise
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise DatasetError(f"{what} is not a readable image: {error}.") from error


def _orientation(image: Image.Image, data: bytes) -> int:
    """Return the orientation that an image's EXIF data give, 1 (upright) where they give none."""
    if image.format == "PNG" and not any(mark in data for mark in _EXIF_OF_PNG):
        return 1  # Pillow would decode all of it, to look behind the pixels
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _seems_cut(data: bytes) -> bool:
    """Return whether an image lacks the mark that ends it, of the formats that have one."""
    if data.startswith(b"\xff\xd8"):  # JPEG: the end of the image after the last scan
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-64:]
    return data.startswith(b"RIFF") and int.from_bytes(data[4:8], "little") + 8 > len(data)


def _depth_reason(image: Image.Image) -> str | None:
    """Return why an image has no colours: a single channel of more than 8 bits; else None."""
    if image.mode == "F" or image.mode.startswith("I"):
        return f"its pixels are one channel of more than 8 bits (mode {image.mode})"
    return None
