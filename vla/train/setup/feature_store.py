"""Rows of numbers for every frame of a dataset, on disk: written once, one frame after another.

    <folder>/
      rows.bin       every frame's rows, `[r, *row]`, as they came
      index.npy      [frames, 2], by the dataset's global frame number: its first row, and how many it has
      about.json     dtype and shape of a row, and whatever else its maker wants to know

A frame is one read at one offset, whatever is open in whichever process.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from vla.errors import DatasetError

_ROWS, _INDEX, _ABOUT = "rows.bin", "index.npy", "about.json"


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
        self._index, self._end = np.zeros((frames, 2), dtype=np.int64), 0
        self._file = open(folder / _ROWS, "wb")  # noqa: SIM115 (closed by close)

    def append(self, frame: int, rows: torch.Tensor) -> None:
        """Write the rows `[r, *row]` of a frame; they become the folder's dtype."""
        assert rows.shape[1:] == self._row, (rows.shape, self._row)
        kept = rows.to("cpu", self._dtype).contiguous()
        self._file.write(kept.view(torch.uint8).numpy().data)
        self._index[frame] = self._end, len(rows)
        self._end += len(rows)

    def close(self) -> None:
        """Complete the folder."""
        self._file.close()
        np.save(self._folder / _INDEX, self._index)
        (self._folder / _ABOUT).write_text(json.dumps(self.about, indent=2) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.close() if error is None else self._file.close()


@dataclass(frozen=True)
class FeatureStore:
    """A folder that a `FrameWriter` has closed; it can be sent to a loader's worker processes."""

    folder: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        """Dtype and shape of a row, and what the maker has added."""
        try:
            about = json.loads((self.folder / _ABOUT).read_text())
        except (OSError, ValueError) as error:
            raise self._damaged(_ABOUT) from error
        if not isinstance(about, dict) or not {"row", "dtype"} <= about.keys():
            raise self._damaged(_ABOUT)
        return about

    @cached_property
    def longest(self) -> int:
        """The most rows that a frame has."""
        return int(self._index[:, 1].max())

    def read(self, frame: int) -> torch.Tensor:
        """Return the rows `[r, *row]` of a global frame number.

        Raises:
            DatasetError: They are not all there.
        """
        row, dtype = tuple(self.about["row"]), getattr(torch, self.about["dtype"])
        size = prod(row) * dtype.itemsize
        first, number = self._index[frame].tolist()
        found = np.fromfile(self.folder / _ROWS, np.uint8, count=number * size, offset=first * size)
        if number == 0 or len(found) < number * size:
            raise DatasetError(f"{self.folder} lacks frame {frame}: it is damaged; remove it.")
        return torch.from_numpy(found).view(dtype).reshape(number, *row)

    @cached_property
    def _index(self) -> np.ndarray:
        try:
            index = np.load(self.folder / _INDEX, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(_INDEX) from error
        if index.ndim != 2 or index.shape[1] != 2 or index.dtype.kind not in "iu" or not len(index):
            raise self._damaged(_INDEX)
        return index

    def _damaged(self, name: str) -> DatasetError:
        return DatasetError(f"{self.folder / name} is damaged or missing; remove the folder {self.folder}.")
