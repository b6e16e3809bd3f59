"""Images stored in parquet (features of dtype `image`): encoded bytes, one per row, decoded on demand."""

import io
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from vla.data.hub import refuse_pointer, refuse_pointer_content
from vla.errors import DatasetError

_FIRST_BYTES = 1 << 16


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
    with _opened(value, what) as image:
        return (image.height, image.width), _depth_reason(image)


def decode_image(value: Any, what: str) -> np.ndarray:
    """Decode a stored image, uint8 `[h, w, 3]`; arguments and errors as those of `image_header`.

    Raises:
        DatasetError: It is not an image, or shows distances.
    """
    with _opened(value, what) as image:
        if reason := _depth_reason(image):
            raise DatasetError(f"{what} shows distances, not colours: {reason}.")
        return np.array(image.convert("RGB"))


@contextmanager
def _opened(value: Any, what: str) -> Iterator[Image.Image]:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise DatasetError(f"{what} holds no image (bytes are missing).")
    refuse_pointer_content(data, what)
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{what} is not a readable image: {error}.") from error


def _depth_reason(image: Image.Image) -> str | None:
    """Return why an image has no colours: a single channel of more than 8 bits; else None."""
    if image.mode == "F" or image.mode.startswith("I"):
        return f"its pixels are one channel of more than 8 bits (mode {image.mode})"
    return None
