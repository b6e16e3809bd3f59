"""Reading orbax trees, as the JAX original saves its weights, through tensorstore and without JAX.

A tree is a folder with `_METADATA`, which names the arrays, and the arrays as zarr (version 2 or 3), either
each in a folder of its own or all in one OCDBT database (`manifest.ocdbt`). A chunk that is absent reads as
zeros unless zarr is told otherwise: here it is an error, except where the tree says that it left out chunks
of zeros on purpose.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla.errors import MissingDependencyError, WeightsError
from vla.weights.finite import refuse_not_finite
from vla.weights.tensors import TensorInfo, TensorReader

METADATA_FILE = "_METADATA"
MANIFEST_FILE = "manifest.ocdbt"
PARAMS_ITEM = "params"

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint64": torch.uint64,
    "uint32": torch.uint32,
    "uint16": torch.uint16,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_PLACES_BYTES = 100 * 2**20
_AGAIN = "download or copy all of it again"


def find_orbax(folder: Path) -> Path | None:
    """Return the folder of the orbax tree that holds the parameters, or None where there is none.

    It is the folder itself, `params/` in it, or the only tree among the subfolders of either.

    Raises:
        WeightsError: There are several trees and none is called `params`, or a tree was never finished.
    """
    for start in (folder, folder / PARAMS_ITEM):
        if _is_tree(start):
            return start
    for start in (folder / PARAMS_ITEM, folder):
        trees = sorted(path for path in start.iterdir() if _is_tree(path)) if start.is_dir() else []
        if len(trees) > 1:
            raise WeightsError(
                f"{start} holds several orbax trees ({', '.join(path.name for path in trees)}); give the "
                "folder of the one that is meant."
            )
        if trees:
            return trees[0]
    return None


def _is_tree(folder: Path) -> bool:
    if (folder / METADATA_FILE).is_file() or (folder / MANIFEST_FILE).is_file():
        return True
    if folder.is_dir() and any(folder.glob("ocdbt.process_*")):
        raise WeightsError(
            f"{folder} holds parts of an orbax checkpoint, but neither {MANIFEST_FILE} nor {METADATA_FILE}: "
            f"it was not finished or not copied whole; {_AGAIN}."
        )
    return False


def open_orbax(root: Path) -> "OrbaxReader":
    """Open an orbax tree.

    Args:
        root: The folder that holds `_METADATA`.

    Raises:
        WeightsError: Its metadata cannot be read, or an array that they name is absent or damaged.
        MissingDependencyError: tensorstore is not installed.
    """
    return OrbaxReader(root)


class OrbaxReader(TensorReader):
    """The arrays of one orbax tree, the largest first; dotted names without `params.` and `.value` around.

    One thread reads at a time: tensorstore has threads of its own.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root
        self.metadata = {}
        self._ts = _tensorstore()
        # Holds the index of a database; the values have caches of their own.
        self._context = self._ts.Context({"cache_pool#ocdbt": {"total_bytes_limit": _PLACES_BYTES}})
        content = _read_metadata(root / METADATA_FILE)
        self._is_ocdbt = (root / MANIFEST_FILE).is_file()
        if not self._is_ocdbt and content.get("use_ocdbt"):
            raise WeightsError(f"{root} lacks {MANIFEST_FILE}, which is the index of the database; {_AGAIN}.")
        # Without the flag, chunks of zeros may not be left out.
        self._skips_zeros = content.get("store_array_data_equal_to_fill_value") is False
        self._paths = _array_paths(content, root / METADATA_FILE)
        self._driver = self._find_drivers()
        infos = {name: self._open_info(name) for name in self._paths}
        # The largest first: while its chunks are decoded, little else has been loaded yet.
        self.infos = dict(sorted(infos.items(), key=lambda item: -item[1].num_bytes))
        self._open: tuple[tuple[str, bool], Any] | None = None

    def close(self) -> None:
        """Release what tensorstore holds."""
        self._open = None

    def file_of(self, name: str) -> Path:
        """Return the array's folder, or the database's where all arrays share one."""
        self.info(name)
        return self.folder if self._is_ocdbt else self.folder / self._paths[name]

    def read_rows(self, name: str, out: Tensor, start: int = 0) -> None:
        """Fill `out` with the rows of axis 0 from `start` on; see `TensorReader.read_rows`."""
        info = self.info(name)
        assert out.dtype == info.dtype
        assert out.shape[1:] == info.shape[1:]
        if out.numel() == 0:
            return
        is_whole = not info.shape or len(out) == info.shape[0]
        store = self._store(name, caches=not is_whole)
        if not is_whole:
            store = store[start : start + len(out)].translate_to[0]
        with self._readable(name):
            self._ts.array(_as_numpy(out, self._ts)).write(store).result()
        refuse_not_finite(out, name, self.file_of(name), info.shape, start)

    def _store(self, name: str, *, caches: bool) -> Any:
        """Return the array, opened for reading its values; the one used last stays open.

        A chunk may span many layers, even all of them. It is decoded once and kept while they are read one
        after the other, which is why the cache belongs to this one array and ends with it.
        """
        if self._open is None or self._open[0] != (name, caches):
            self._open = None
            limit = self._bytes_of_a_row_of_chunks(name) if caches else 0
            context = self._ts.Context({"cache_pool": {"total_bytes_limit": limit}}, self._context)
            self._open = ((name, caches), self._open_store(name, context))
        return self._open[1]

    def _bytes_of_a_row_of_chunks(self, name: str) -> int:
        """Bytes of all chunks that hold one entry of axis 0; 0 where they hold nothing but it."""
        shape, dtype = self.infos[name]
        with self._readable(name):
            chunk = self._open_store(name, None).chunk_layout.read_chunk.shape
        if chunk[0] <= 1:
            return 0
        size = chunk[0] * dtype.itemsize
        for length, step in zip(shape[1:], chunk[1:], strict=True):
            size *= -(-length // step) * step
        return size + 2**20  # tensorstore counts some bytes of its own

    def _open_info(self, name: str) -> TensorInfo:
        store = self._open_store(name, None)
        dtype = _DTYPES.get(store.dtype.name)
        if dtype is None:
            raise WeightsError(
                f"'{name}' in {self.folder} is of type {store.dtype.name}, which is not read here."
            )
        return TensorInfo(tuple(store.shape), dtype)

    def _open_store(self, name: str, context: Any) -> Any:
        spec = {
            "driver": self._driver[name],
            "kvstore": self._kvstore(self._paths[name] + "/"),
            "fill_missing_data_reads": self._skips_zeros,
            "recheck_cached_data": "open",  # use what was decoded, without checking the file again
        }
        with self._readable(name):
            return self._ts.open(spec, read=True, context=context or self._context).result()

    def _kvstore(self, below: str = "") -> dict[str, Any]:
        if self._is_ocdbt:
            base = {"driver": "file", "path": f"{self.folder}/"}
            return {"driver": "ocdbt", "base": base, "path": below, "cache_pool": "cache_pool#ocdbt"}
        return {"driver": "file", "path": f"{self.folder}/{below}"}

    def _find_drivers(self) -> dict[str, str]:
        """Return the zarr version of every array, by the files that are there."""
        with self._readable("the list of arrays"):
            keys = self._ts.KvStore.open(self._kvstore(), context=self._context).result().list().result()
        present = {key.decode(errors="replace") for key in keys}
        drivers = {}
        for name, path in self._paths.items():
            if f"{path}/.zarray" in present:
                drivers[name] = "zarr"
            elif f"{path}/zarr.json" in present:
                drivers[name] = "zarr3"
        if absent := [name for name in self._paths if name not in drivers]:
            raise WeightsError(
                f"{self.folder} lacks {len(absent)} of the {len(self._paths)} arrays that {METADATA_FILE} "
                f"names: {', '.join(absent[:3])}{' and others' if len(absent) > 3 else ''}; {_AGAIN}."
            )
        return drivers

    @contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        """Turn tensorstore's errors into one that names the array and the tree."""
        try:
            yield
        except (ValueError, OSError, KeyError, RuntimeError, NotImplementedError) as error:
            if isinstance(error, WeightsError):
                raise
            reason = str(error).split(" [tensorstore_spec=")[0].splitlines()[0]
            raise WeightsError(f"'{name}' in {self.folder} cannot be read: {reason}; {_AGAIN}.") from error


def _tensorstore() -> ModuleType:
    try:
        import tensorstore
    except ImportError as error:
        raise MissingDependencyError(
            'Checkpoints of the JAX original are read through tensorstore: pip install "vla[openpi]".'
        ) from error
    return tensorstore


def _read_metadata(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsError(f"{path.parent} lacks {METADATA_FILE}, which names its arrays; {_AGAIN}.")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON ({error}); {_AGAIN}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("tree_metadata"), dict):
        raise WeightsError(f"{path} has no 'tree_metadata' that names the arrays; {_AGAIN}.")
    return content


def _array_paths(content: dict[str, Any], path: Path) -> dict[str, str]:
    """Return the name of every array and where it lies below the tree's folder.

    Trees that were saved from Flax NNX end every path in `value`; the item is often called `params` inside
    as well. Neither means anything.
    """
    paths: dict[str, str] = {}
    for label, entry in content["tree_metadata"].items():
        try:
            skips = entry["value_metadata"].get("skip_deserialize", False)
            stored = ".".join(str(step["key"]) for step in entry["key_metadata"])
        except (AttributeError, KeyError, TypeError) as error:
            raise WeightsError(f"{path} does not describe {label} in a known way; {_AGAIN}.") from error
        if skips:  # an empty place in the tree
            continue
        name = re.sub(r"^params\.|\.value$", "", stored)
        if name in paths:
            raise WeightsError(f"{path} names '{name}' twice, as {paths[name]} and {stored}.")
        paths[name] = stored
    if not paths:
        raise WeightsError(f"{path} names no array; {_AGAIN}.")
    return paths


def _as_numpy(tensor: Tensor, ts: ModuleType) -> np.ndarray:
    """Return the tensor's memory as an array of the dtype that tensorstore means by it."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ts.bfloat16.numpy_dtype)
    return tensor.numpy()
