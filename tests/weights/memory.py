"""Tensors in memory behind the interface of a file, so that names and plans are tried without one."""

from collections.abc import Mapping
from pathlib import Path

import torch

from vla.weights.formats import Stored
from vla.weights.tensors import Piece, TensorInfo, TensorReader


class MemoryReader(TensorReader):
    def __init__(
        self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.folder = Path("in_memory")
        self.tensors = dict(tensors)
        self.infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in tensors.items()}
        self.metadata = dict(metadata or {})

    def file_of(self, name: str) -> Path:
        return self.folder / name

    def read_rows(self, name: str, out: torch.Tensor, start: int = 0) -> None:
        stored = self.tensors[name]
        out.copy_(stored[start : start + len(out)] if stored.ndim else stored)


def stored_in_memory(
    tensors: Mapping[str, torch.Tensor],
    config: dict | None = None,
    metadata: Mapping[str, str] | None = None,
    folder: Path = Path("in_memory"),
) -> Stored:
    return Stored(folder, MemoryReader(tensors, metadata), config or {})


def make(piece: Piece, reader: TensorReader) -> torch.Tensor:
    """What a piece promises, the plain way."""
    tensor = reader.read(piece.stored, piece.index)
    tensor = tensor if piece.op is None else piece.op(tensor)
    return tensor if piece.rows is None else tensor[: piece.rows]
