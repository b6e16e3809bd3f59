"""Rows of numbers for every frame of a dataset, on disk: written once, one frame after another.

    <folder>/
      rows.bin       every frame's rows, `[r, *row]`, as they came
      index.npy      [frames, 3], by the dataset's global frame number: its first row, how many it has, and
                     their CRC-32
      about.json     dtype and shape of a row, whatever else its maker wants to know, and the SHA-256 of all
                     that and of the index

A frame is one read at one offset, whatever is open in whichever process. What was changed is noticed: the two
small files when they are opened, rows when they are read, at some 0.4 ms per MB.
"""

import hashlib
import io
import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from vla.errors import DatasetError

_ROWS, _INDEX, _ABOUT = "rows.bin", "index.npy", "about.json"
_SUM = "checksum"


class FrameWriter:
    """Appends frames to a folder that exists; to be closed, or used in a `with`.

    Args:
        folder: An empty folder.
        frames: What all global frame numbers are less than.
        row: Shape of a row.
        dtype: How the numbers are stored.

    Attributes:
        about: JSON values to keep with them.
    """

    def __init__(self, folder: Path, frames: int, row: tuple[int, ...], dtype: torch.dtype) -> None:
        self._folder, self._row, self._dtype = folder, row, dtype
        self.about: dict[str, Any] = {"row": list(row), "dtype": str(dtype).removeprefix("torch.")}
        self._index, self._end = np.zeros((frames, 3), dtype=np.int64), 0
        self._file = open(folder / _ROWS, "wb")  # noqa: SIM115 (closed by close)

    def append(self, frame: int, rows: torch.Tensor) -> None:
        """Write the rows `[r, *row]` of a frame; they become the folder's dtype."""
        assert rows.shape[1:] == self._row, (rows.shape, self._row)
        kept = rows.to("cpu", self._dtype).contiguous()
        content = kept.reshape(-1).view(torch.uint8).numpy()
        self._file.write(content.data)
        self._index[frame] = self._end, len(rows), zlib.crc32(content.data)
        self._end += len(rows)

    def close(self) -> None:
        """Complete the folder."""
        self._file.close()
        np.save(self._folder / _INDEX, self._index)
        self.about[_SUM] = _checksum(self.about, (self._folder / _INDEX).read_bytes())
        (self._folder / _ABOUT).write_text(json.dumps(self.about, indent=2) + "\n", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.close() if error is None else self._file.close()


@dataclass(frozen=True)
class FeatureStore:
    """A folder that a `FrameWriter` has closed; it can be sent to a loader's worker processes."""

    folder: Path

    def check(self, key: str | None = None) -> None:
        """Check the description, and that the rows are as many as it says; the rows are checked when read.

        Args:
            key: What `about["key"]` must be; None takes any.

        Raises:
            DatasetError: A file is missing, damaged or changed, or the features are others.
        """
        if key is not None and self.about.get("key") != key:
            raise self._damaged(_ABOUT, "says that the folder holds other features: it was renamed or copied")
        expected = int(self._index[:, 1].sum()) * self._row_size
        try:
            found = (self.folder / _ROWS).stat().st_size
        except OSError as error:
            raise self._damaged(_ROWS) from error
        if found != expected:
            raise self._damaged(_ROWS, f"has {found} bytes, not {expected}: it is damaged")

    @property
    def about(self) -> dict[str, Any]:
        """Dtype and shape of a row, and what the maker has added."""
        return self._described[0]

    @cached_property
    def longest(self) -> int:
        """The most rows that a frame has."""
        return int(self._index[:, 1].max())

    def read(self, frame: int) -> torch.Tensor:
        """Return the rows `[r, *row]` of a global frame number.

        Raises:
            DatasetError: They are not all there, or not those that were written.
        """
        first, number, checksum = self._index[frame].tolist()
        count = number * self._row_size
        try:
            found = np.fromfile(self.folder / _ROWS, np.uint8, count=count, offset=first * self._row_size)
        except OSError as error:
            raise self._damaged(_ROWS) from error
        if number == 0 or len(found) < count:
            raise self._damaged(_ROWS, f"lacks frame {frame}: it is damaged")
        if zlib.crc32(found.data) != checksum:
            raise self._damaged(
                _ROWS, f"holds other numbers for frame {frame} than were computed: it was changed"
            )
        dtype = getattr(torch, self.about["dtype"])
        return torch.from_numpy(found).view(dtype).reshape(number, *self.about["row"])

    @property
    def _row_size(self) -> int:
        """Bytes of a row."""
        return prod(self.about["row"]) * getattr(torch, self.about["dtype"]).itemsize

    @property
    def _index(self) -> np.ndarray:
        return self._described[1]

    @cached_property
    def _described(self) -> tuple[dict[str, Any], np.ndarray]:
        """What is said of the rows, and the index: as they were written, or refused."""
        try:
            about = json.loads((self.folder / _ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(_ABOUT) from error
        if not isinstance(about, dict) or not {"row", "dtype", _SUM} <= about.keys():
            raise self._damaged(_ABOUT)
        try:
            content = (self.folder / _INDEX).read_bytes()
        except OSError as error:
            raise self._damaged(_INDEX) from error
        if _checksum(about, content) != about[_SUM]:
            raise self._damaged(_INDEX, f"or {_ABOUT} next to it is damaged, or was changed")
        index = np.load(io.BytesIO(content), allow_pickle=False)
        return about, index

    def _damaged(self, name: str, why: str = "is damaged or missing") -> DatasetError:
        return DatasetError(
            f"{self.folder / name} {why}. Remove the folder {self.folder}: its features are then computed "
            "anew."
        )


def _checksum(about: dict[str, Any], index: bytes) -> str:
    said = json.dumps({key: value for key, value in about.items() if key != _SUM}, sort_keys=True)
    return hashlib.sha256(said.encode() + index).hexdigest()
