"""Weights as several processes wrote them side by side: each file has some rows of every tensor.

    shards/
      shard-00001-model-00001-of-00001.safetensors      the first process's rows
      shard-00002-model-00001-of-00001.safetensors      the second one's
      shapes.json                                       every tensor's whole shape, and the files

Files as `torch.distributed.checkpoint.HuggingFaceStorageWriter` writes them: safetensors, whose metadata says
where in the whole tensor the rows begin. `shapes.json` is ours: without it, a lost file would go unnoticed.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vla.errors import WeightsError
from vla.weights.files.listing import safetensors_in
from vla.weights.files.safetensors import SafetensorsReader
from vla.weights.tensors import TensorInfo, TensorReader

SHARDS = "shards"
"""Folder of the policy's weights in a sharded checkpoint."""

SHAPES_FILE = "shapes.json"
_OFFSETS_KEY, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"


class _Rows(NamedTuple):
    """Some rows of a tensor: where they begin, how many they are, and the file that holds them."""

    start: int
    count: int
    reader: SafetensorsReader


class RowShardsReader(TensorReader):
    """The whole tensors of a folder whose files have some rows each; see `TensorReader`."""

    is_parallel = True

    def __init__(self, folder: Path) -> None:
        """Open the files and check that together they hold every row once.

        Raises:
            WeightsError: A file is absent or damaged, or rows are missing or there twice.
        """
        self.folder, self.metadata = folder, {}
        said = _read_shapes(folder / SHAPES_FILE)
        found: dict[str, list[_Rows]] = {}
        with ExitStack() as stack:
            for name in said["files"]:
                reader = stack.enter_context(SafetensorsReader(folder, [name]))
                offsets = _offsets(reader, folder / name)
                for key, info in reader.infos.items():
                    if key not in said["shapes"]:
                        raise _of_another(folder / name, key)
                    rows = _Rows(offsets[key], info.shape[0] if info.shape else 1, reader)
                    found.setdefault(key, []).append(rows)
            self._rows = {
                key: _in_order(folder, key, found.get(key, []), shape)
                for key, shape in said["shapes"].items()
            }
            self._stack = stack.pop_all()
        self.infos = {
            key: TensorInfo(tuple(shape), self._rows[key][0].reader.infos[key].dtype)
            for key, shape in said["shapes"].items()
        }

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def file_of(self, name: str) -> Path:
        """Return the file that holds the tensor's first rows."""
        self.info(name)
        return self._rows[name][0].reader.file_of(name)

    def files_of(self, name: str) -> list[Path]:
        """Return every file that holds rows of the tensor."""
        self.info(name)
        return [part.reader.file_of(name) for part in self._rows[name]]

    def read_rows(self, name: str, out: Tensor, start: int = 0) -> None:
        """Fill `out` with the rows of axis 0 from `start` on; see `TensorReader.read_rows`."""
        if not self.info(name).shape:
            self._rows[name][0].reader.read_rows(name, out)
            return
        stop = start + len(out)
        for first, count, reader in self._rows[name]:
            begin, end = max(start, first), min(stop, first + count)
            if begin < end:
                reader.read_rows(name, out[begin - start : end - start], begin - first)


def has_row_shards(folder: Path) -> bool:
    """Whether a checkpoint folder holds weights, complete or not, as several processes wrote them."""
    return (folder / SHARDS).is_dir()


def write_shapes(folder: Path, tensors: Mapping[str, Any]) -> None:
    """Write down what the files in `folder` hold together: the last step of writing them."""
    files = [path.name for path in safetensors_in(folder)]
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    (folder / SHAPES_FILE).write_text(json.dumps({"files": files, "shapes": shapes}), encoding="utf-8")


def _read_shapes(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); the checkpoint is damaged.") from error
    if not isinstance(said, dict) or not isinstance(said.get("shapes"), dict):
        raise WeightsError(f"{path} does not say which shapes the weights have; the checkpoint is damaged.")
    files = said.get("files")
    for name in files if isinstance(files, list) else [files]:
        if not isinstance(name, str) or "/" in name or "\\" in name:
            raise WeightsError(f"{path} lists {name!r}, which is not a file name; the checkpoint is damaged.")
    for key, shape in said["shapes"].items():
        if not _is_sizes(shape):
            raise WeightsError(
                f"{path} gives '{key}' the shape {shape!r}, which is not one; the checkpoint is damaged."
            )
    return said


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _offsets(reader: SafetensorsReader, path: Path) -> dict[str, int]:
    """Return the row of the whole tensor at which each of a file's parts begins; 0 for a scalar.

    Raises:
        WeightsError: The file does not say so, or its parts are not whole rows.
    """
    if _OFFSETS_KEY not in reader.metadata:  # one process wrote them whole
        return dict.fromkeys(reader.infos, 0)
    try:
        said = json.loads(reader.metadata[_OFFSETS_KEY])
        offsets = {key: said[key][_OFFSETS] for key in reader.infos}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} does not say which rows it holds ({error}): it is damaged.") from error
    for key, at in offsets.items():
        if not _is_sizes(at) or len(at) != len(reader.infos[key].shape):
            raise WeightsError(f"{path} says that its part of '{key}' begins at {at!r}: it is damaged.")
        if any(at[1:]):
            raise WeightsError(f"{path} holds parts of the rows of '{key}', and only whole rows are read.")
    return {key: at[0] if at else 0 for key, at in offsets.items()}


def _in_order(folder: Path, key: str, found: list[_Rows], shape: list[int]) -> list[_Rows]:
    """Return a tensor's parts by their first row; raise unless they are all of its rows, each once."""
    if not found:
        raise WeightsError(
            f"{folder} lacks '{key}', which {SHAPES_FILE} lists: a file is of another checkpoint."
        )
    parts = sorted((part for part in found if part.count), key=lambda part: part.start) or found[:1]
    dtype, end = parts[0].reader.infos[key].dtype, 0
    for part in parts:
        info = part.reader.infos[key]
        if info.dtype != dtype or len(info.shape) != len(shape) or list(info.shape[1:]) != shape[1:]:
            raise _of_another(part.reader.file_of(key), key)
        if part.count and part.start != end:
            break
        end += part.count
    if end != (shape[0] if shape else 1):
        raise WeightsError(
            f"{folder} does not hold all rows of '{key}' {shape} once: a file is damaged, or of another "
            "checkpoint."
        )
    return parts


def _of_another(file: Path, key: str) -> WeightsError:
    return WeightsError(
        f"{file} holds a part of '{key}' that {SHAPES_FILE} next to it does not know: one of the two is of "
        "another checkpoint."
    )
