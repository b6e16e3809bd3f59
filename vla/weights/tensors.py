"""The tensors of a checkpoint folder, whatever the container: their headers, and their values one by one.

`open_tensors` recognises by content which container a folder holds and returns its `TensorReader`. A `Piece`
says how one tensor of a model is made from a stored one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from vla.errors import WeightsError, did_you_mean

BLOCK_BYTES = 64 * 2**20
"""Bytes of a block where a tensor is read in blocks."""


class TensorInfo(NamedTuple):
    """One tensor's entry in a header."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Piece:
    """How one tensor of ours is made from a stored one.

    Args:
        stored: Name of the stored tensor.
        info: Shape of the result (with all rows or with `rows` of them), and the dtype that is stored.
        index: Take this one entry of axis 0 alone (orbax stacks layers).
        op: Applied to what was read, before `rows`; None where the values are taken as they are.
        rows: Keep only the first rows of axis 0; None keeps all.
    """

    stored: str
    info: TensorInfo
    index: int | None = None
    op: Callable[[Tensor], Tensor] | None = None
    rows: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.info.shape if self.rows is None else (self.rows, *self.info.shape[1:])


class TensorReader(ABC):
    """The tensors of one folder; a context manager that holds its files open.

    Attributes:
        folder: Where the files lie.
        infos: Shape and dtype of every tensor by name, from the headers alone; in the order in which reading
            all of them is cheapest.
        metadata: Free text next to the tensors (safetensors' `__metadata__`); empty where there is none.
        is_parallel: Whether several threads may read at once, and gain by it.

    Every read raises `WeightsError`, naming file and tensor, where a value is NaN or infinite or where the
    file does not hold what its header promises.
    """

    folder: Path
    infos: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    is_parallel: bool = False

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors together, as stored (before any compression)."""
        return sum(info.num_bytes for info in self.infos.values())

    @abstractmethod
    def file_of(self, name: str) -> Path:
        """Return the file (orbax: the folder) that holds the tensor's values, or the first of them."""

    def files_of(self, name: str) -> list[Path]:
        """Return every file (orbax: the folder) that holds values of the tensor."""
        return [self.file_of(name)]

    @abstractmethod
    def read_rows(self, name: str, out: Tensor, start: int = 0) -> None:
        """Fill `out` with the rows of axis 0 from `start` on, as they are stored.

        Args:
            name: Stored name.
            out: Contiguous CPU tensor of the stored dtype, `[n, *rest]` for a stored `[rows, *rest]`; of
                shape `[]` for a stored scalar.
            start: First row.
        """

    def close(self) -> None:  # noqa: B027 - a reader that holds nothing open need not override it
        """Close the files."""

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's entry in the header.

        Raises:
            WeightsError: There is no tensor of that name.
        """
        if name not in self.infos:
            raise WeightsError(f"{self.folder} holds no tensor '{name}'.{did_you_mean(name, self.infos)}")
        return self.infos[name]

    def read(self, name: str, index: int | None = None) -> Tensor:
        """Return a tensor as stored, in fresh CPU memory.

        Args:
            name: Stored name.
            index: Read this entry of axis 0 alone and drop the axis; None reads all of it.

        Raises:
            WeightsError: No such tensor, or its values cannot be read or are not finite.
        """
        shape, dtype = self.info(name)
        if index is None:
            out = torch.empty(shape, dtype=dtype)
            self.read_rows(name, out)
            return out
        if not shape or not 0 <= index < shape[0]:
            raise WeightsError(
                f"'{name}' in {self.file_of(name)} has shape {list(shape)}, so it has no entry {index}."
            )
        out = torch.empty((1, *shape[1:]), dtype=dtype)
        self.read_rows(name, out, index)
        return out[0]

    def blocks(self, name: str, max_bytes: int = BLOCK_BYTES) -> Iterator[Tensor]:
        """Yield a tensor in consecutive blocks along axis 0.

        Args:
            name: Stored name.
            max_bytes: Size of a block at most; a single row is not divided.

        Yields:
            CPU tensors `[n, *rest]` in the stored dtype (shape `[]` for a scalar), valid until the next one
            is asked for: they share one buffer.

        Raises:
            WeightsError: See `read`.
        """
        shape, dtype = self.info(name)
        if not shape:
            yield self.read(name)
            return
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        rows = min(shape[0], max(1, max_bytes // max(1, row_bytes)))
        buffer = torch.empty((rows, *shape[1:]), dtype=dtype)
        for start in range(0, shape[0], max(1, rows)):
            block = buffer[: min(rows, shape[0] - start)]
            self.read_rows(name, block, start)
            yield block

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
