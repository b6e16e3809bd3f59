"""Images stored in parquet (features of dtype `image`): encoded bytes, one per row, decoded on demand."""

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from vla.errors import DatasetError


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
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DatasetError(f"{path}, row {row}: '{key}' holds no image (bytes are missing).")
        try:
            with Image.open(io.BytesIO(data)) as image:
                return np.array(image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise DatasetError(f"{path}, row {row}: '{key}' is not a readable image: {error}.") from error

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
        if place not in self._groups:
            while len(self._groups) >= self._capacity:
                self._groups.popitem(last=False)
            with pq.ParquetFile(path) as file:
                self._groups[place] = file.read_row_group(group, columns=[key], use_threads=False)[key]
        self._groups.move_to_end(place)
        return self._groups[place]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups": OrderedDict()}
