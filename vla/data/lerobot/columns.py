"""The rows of a dataset without its images: parquet is read once when opened, numpy from then on.

Every low-dimensional column of the selected episodes is held in memory (a million frames of 14 + 14
numbers are 112 MB), so that a chunk is one numpy index and never a parquet read. Data that cannot be
learned from (NaN, a row of another width, a missing episode) are refused here, before a run starts; where
they are in a column that nothing needs, that column is left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vla.data.hub import refuse_pointer
from vla.data.lerobot.episodes import Episode
from vla.data.lerobot.schema import DatasetInfo, Feature
from vla.data.notices import say_once
from vla.errors import DatasetError

_COUNTED = ("frame_index", "episode_index", "index", "task_index")
_REQUIRED = ("timestamp", "frame_index", "episode_index", "task_index")
_READERS = 8  # threads; parquet decoding releases the interpreter, and a v2.1 dataset has many small files
_BASE = (*_COUNTED, "timestamp")
_Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class TextColumn:
    """A column of strings that repeat: every distinct text once, and a number per row."""

    texts: tuple[str, ...]
    codes: np.ndarray

    def __getitem__(self, row: int) -> str:
        return self.texts[self.codes[row]]


@dataclass(frozen=True)
class Columns:
    """All low-dimensional columns of the selected episodes, one after the other.

    Attributes:
        numbers: Column by key, `[n]` or `[n, *shape]`.
        texts: String column by key.
        file_rows: Row of each frame within its parquet file, int64 `[n]`.
        left_out: Why a column is not there, by key.
    """

    numbers: Mapping[str, np.ndarray]
    texts: Mapping[str, TextColumn]
    file_rows: np.ndarray
    left_out: Mapping[str, str]


def read_columns(
    root: Path,
    info: DatasetInfo,
    episodes: Sequence[Episode],
    vectors: Sequence[str] = (),
    starts: Mapping[int, int] | None = None,
) -> Columns:
    """Read and check the rows of some episodes, in the order of `episodes`.

    Args:
        root: The dataset's folder.
        info: Its description.
        episodes: Whose rows.
        vectors: Columns that are needed besides those that say which row is which: state and actions. Any
            other column is left out, with a warning, where it cannot be used.
        starts: Rows of the whole dataset before each episode, by its index. Where given, `index` is counted
            from them: it is right also where the files have none, or another.

    Raises:
        DatasetError: A file is missing or corrupt, lacks a column, holds other rows than the metadata
            says, a value that is not finite, a vector of another width, or an unknown task.
    """
    features, left_out = _readable(info)
    reader = _FileReader(features, {*_REQUIRED, *vectors})
    by_file: dict[str, list[int]] = {}
    for position, episode in enumerate(episodes):
        by_file.setdefault(episode.data_path, []).append(position)

    def read(path: str) -> dict[int, _Arrays]:
        return reader.read(root / path, [(p, episodes[p]) for p in by_file[path]])

    parts: dict[int, _Arrays] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for part in pool.map(read, by_file):
            parts.update(part)
    left_out |= reader.left_out
    if starts is not None:
        _count_rows(parts, episodes, starts, left_out)
    for key, reason in left_out.items():
        say_once(f"{root}: the column '{key}' is left out: {reason}")
    kept = [key for key in features if key not in left_out]
    keys = {**dict.fromkeys(kept), **({"index": None} if starts is not None else {}), "file_rows": None}
    whole = {key: np.concatenate([parts[p][key] for p in range(len(episodes))]) for key in keys}
    _check_tasks(info, whole["task_index"])
    texts = {key: _encode(whole.pop(key)) for key in kept if features[key].dtype == "string"}
    return Columns(whole, texts, whole.pop("file_rows"), left_out)


def read_table(path: Path, columns: Sequence[str] | None = None, optional: Sequence[str] = ()) -> pa.Table:
    """Read columns of one parquet file (all of them by default).

    Args:
        path: The file.
        columns: Those that it must have.
        optional: Those that are read where it has them.

    Raises:
        DatasetError: The file is missing or corrupt, lacks a column, or has one twice.
    """
    try:
        with pq.ParquetFile(path) as file:
            # Top-level names: a list column's leaves are called "action.list.element" otherwise.
            names = file.schema_arrow.names
            missing = sorted(set(columns or ()) - set(names))
            if missing:
                raise DatasetError(f"{path} has no column {missing}; it has {names}.")
            asked = names if columns is None else {*columns, *optional}
            if twice := sorted({name for name in names if names.count(name) > 1 and name in asked}):
                raise DatasetError(f"{path} has two columns of one name, {twice}: rename or drop one.")
            wanted = None if columns is None else [*columns, *(key for key in optional if key in names)]
            try:
                return file.read(wanted, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                unreadable = _unreadable(file, names if wanted is None else wanted)
                raise DatasetError(
                    f"{path} is not a readable parquet file{unreadable}: {_first_line(error)}"
                ) from error
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path} is missing: the dataset is incomplete, or data_path and chunks_size of meta/info.json, "
            "or the episode_index, lead elsewhere."
        ) from error
    except (pa.ArrowException, OSError) as error:
        refuse_pointer(path)
        raise DatasetError(f"{path} is not a readable parquet file: {_first_line(error)}") from error


def _unreadable(file: pq.ParquetFile, columns: Sequence[str]) -> str:
    """Return which columns cannot be read, for a message; nothing where it is not about a column."""
    broken = []
    for key in columns:
        try:
            file.read([key], use_threads=False)
        except (pa.ArrowException, OSError):
            broken.append(key)
    return f" (columns {broken})" if broken and len(broken) < len(columns) else ""


def _readable(info: DatasetInfo) -> tuple[dict[str, Feature], dict[str, str]]:
    """Return the features that are read, and why others are not."""
    missing = [key for key in _REQUIRED if key not in info.features]
    if missing:
        raise DatasetError(f"meta/info.json lists no feature {missing}, which every LeRobot dataset has.")
    features, left_out = {}, {}
    for key, feature in info.features.items():
        if feature.is_image:
            continue
        if feature.dtype == "string" or feature.is_numeric:
            features[key] = feature
        else:
            left_out[key] = f"its dtype '{feature.dtype}' is not read."
    for key in _REQUIRED:
        if (feature := info.features[key]).width != 1 or not feature.is_numeric:
            raise DatasetError(
                f"meta/info.json, features.{key}: dtype and shape are {feature.dtype} {list(feature.shape)}, "
                "expected one number per frame."
            )
    return features, left_out


class _FileReader:
    """Reads parquet files; what is wrong with columns that nothing needs is gathered in `left_out`."""

    def __init__(self, features: Mapping[str, Feature], needed: set[str]) -> None:
        self._features, self._needed = features, needed
        self._reasons: dict[str, dict[str, str]] = {}

    @property
    def left_out(self) -> dict[str, str]:
        """Why columns are left out: for each, what is wrong in the first file by name."""
        return {key: by_file[min(by_file)] for key, by_file in self._reasons.items()}

    def read(self, path: Path, wanted: Sequence[tuple[int, Episode]]) -> dict[int, _Arrays]:
        """Read one file and cut out the wanted episodes, by their position in the selection."""
        needed = [key for key in self._features if key in self._needed]
        others = [key for key in self._features if key not in self._needed]
        table = read_table(path, needed, others)
        arrays: _Arrays = {"file_rows": np.arange(len(table))}
        for key, feature in self._features.items():
            with self._leaving_out(key, path):
                if key not in table.column_names:
                    raise DatasetError(f"{path} has no such column.")
                arrays[key] = to_numpy(path, table[key], feature)
        spans = _episode_spans(path, arrays["episode_index"])
        parts = {}
        for position, episode in wanted:
            start, stop = spans.get(episode.index, (0, 0))
            if stop - start != episode.length:
                raise DatasetError(
                    f"{path}: the metadata says that episode {episode.index} has {episode.length} frames "
                    f"here, but the file holds {stop - start} rows of it."
                )
            parts[position] = {key: values[start:stop] for key, values in arrays.items()}
            _check_frames(path, episode, parts[position]["frame_index"])
            for key, feature in self._features.items():
                if key in arrays:
                    with self._leaving_out(key, path):
                        _check_finite(path, episode, parts[position][key], feature)
        return parts

    @contextmanager
    def _leaving_out(self, key: str, path: Path) -> Iterator[None]:
        try:
            yield
        except DatasetError as error:
            if key in self._needed:
                raise
            self._reasons.setdefault(key, {}).setdefault(str(path), str(error))


def _episode_spans(path: Path, indices: np.ndarray) -> dict[int, tuple[int, int]]:
    if not len(indices):
        return {}
    starts = np.concatenate([[0], np.flatnonzero(np.diff(indices)) + 1])
    stops = np.append(starts[1:], len(indices))
    spans = {}
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        index = int(indices[start])
        if index in spans:
            raise DatasetError(
                f"{path}: the rows of episode {index} are not next to each other (row {start})."
            )
        spans[index] = (start, stop)
    return spans


def to_numpy(path: Path, column: pa.ChunkedArray, feature: Feature) -> np.ndarray:
    """Flatten an Arrow column to `[n]` or `[n, *shape]` of the feature's dtype.

    Raises:
        DatasetError: The column holds something else than the feature says.
    """
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    num_rows, flat = len(array), _flatten(path, array, feature.key)
    expected = num_rows * feature.width
    if feature.dtype == "string":
        return _as_texts(path, flat, expected, feature)
    if flat.null_count and not pa.types.is_floating(flat.type):
        raise DatasetError(f"{path}: column '{feature.key}' has {flat.null_count} empty values.")
    values = flat.to_numpy(zero_copy_only=False)  # an empty float becomes NaN, which is refused later
    if values.dtype.kind not in "fiub" or len(values) != expected:
        raise DatasetError(
            f"{path}: meta/info.json says that '{feature.key}' is {feature.dtype} {list(feature.shape)}, but "
            f"the column has type {column.type} with {len(flat) // max(num_rows, 1)} values a row."
        )
    values = _converted(path, values, feature)
    is_scalar = feature.key in _BASE or not _is_nested(array.type)
    return (
        values.reshape(num_rows)
        if is_scalar and feature.width == 1
        else values.reshape(num_rows, *feature.shape)
    )


def _flatten(path: Path, array: pa.Array, key: str) -> pa.Array:
    """Return the values in nested lists of equal length, one after the other."""
    array = _plain(array)
    while _is_nested(array.type):
        lengths = pc.call_function("list_value_length", [array]).fill_null(-1).to_numpy(zero_copy_only=False)
        odd = np.flatnonzero(lengths != lengths[0]) if len(lengths) else lengths
        if len(odd) or (len(lengths) and lengths[0] < 0):
            row = int(np.flatnonzero(lengths < 0)[0]) if (lengths < 0).any() else int(odd[0])
            if lengths[row] < 0:
                raise DatasetError(f"{path}, row {row}: '{key}' is empty (null). Repair this row.")
            raise DatasetError(
                f"{path}, row {row}: '{key}' has {lengths[row]} values where the first row has {lengths[0]}."
            )
        array = _plain(array.flatten())
    return array


def _plain(array: pa.Array) -> pa.Array:
    """Return what an extension type (the matrices of `datasets`) or a dictionary stands for."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def _is_nested(kind: pa.DataType) -> bool:
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def _as_texts(path: Path, flat: pa.Array, expected: int, feature: Feature) -> np.ndarray:
    is_text = pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type)
    if not (is_text or pa.types.is_null(flat.type)) or len(flat) != expected or feature.width != 1:
        raise DatasetError(
            f"{path}: meta/info.json says that '{feature.key}' is a string {list(feature.shape)}, but the "
            f"column holds {len(flat)} values of type {flat.type}: one text per frame can be read."
        )
    return flat.cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False)


def _converted(path: Path, values: np.ndarray, feature: Feature) -> np.ndarray:
    """Return the values in the dtype of info.json; raises `DatasetError` where they would become others."""
    dtype = np.dtype(np.int64) if feature.key in _COUNTED else feature.numpy_dtype
    assert dtype is not None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # what becomes infinite is refused later, where it is used
            return values.astype(np.promote_types(dtype, np.float32), copy=False)
    with np.errstate(invalid="ignore"):
        converted = values.astype(dtype, copy=False)
    if different := np.flatnonzero(converted != values).tolist():
        raise DatasetError(
            f"{path}: meta/info.json says that the dtype of '{feature.key}' is {feature.dtype}, but the "
            f"column holds {values[different[0]]}."
        )
    return converted


def _check_frames(path: Path, episode: Episode, frames: np.ndarray) -> None:
    if not np.array_equal(frames, np.arange(episode.length)):
        row = int(np.flatnonzero(frames != np.arange(episode.length))[0])
        raise DatasetError(
            f"{path}: row {row} of episode {episode.index} should have frame_index {row}, got {frames[row]}."
        )


def _check_finite(path: Path, episode: Episode, values: np.ndarray, feature: Feature) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        rows = values.reshape(len(values), -1)
        frame, dimension = np.argwhere(~np.isfinite(rows))[0].tolist()
        raise DatasetError(
            f"{path}: '{feature.key}' of episode {episode.index}, frame {frame}"
            f"{feature.dimension(dimension)} is {rows[frame, dimension]}{beyond(values)}. "
            "Repair or leave out this episode."
        )


def beyond(values: np.ndarray) -> str:
    """Return what an infinite value may have been, for a message."""
    return f", or beyond what {values.dtype} holds" if np.isinf(values).any() else ""


def _count_rows(
    parts: Mapping[int, _Arrays],
    episodes: Sequence[Episode],
    starts: Mapping[int, int],
    left_out: dict[str, str],
) -> None:
    """Put every frame's place in the whole dataset under `index`."""
    for position, episode in enumerate(episodes):
        expected = starts[episode.index] + np.arange(episode.length)
        recorded = parts[position].get("index")
        if recorded is None:
            left_out.setdefault("index", "meta/info.json does not list it; the rows are counted.")
        elif not np.array_equal(recorded, expected):
            left_out.setdefault("index", "it does not number the rows of the dataset; they are counted.")
        parts[position]["index"] = expected


def _check_tasks(info: DatasetInfo, task_indices: np.ndarray) -> None:
    unknown = sorted(set(np.unique(task_indices).tolist()) - set(info.tasks))
    if unknown:
        raise DatasetError(f"The rows use task_index {unknown}, but the task list has {sorted(info.tasks)}.")


def _encode(texts: np.ndarray) -> TextColumn:
    codes: dict[str, int] = {}
    numbers = np.fromiter((codes.setdefault(text, len(codes)) for text in texts), np.int32, len(texts))
    return TextColumn(tuple(codes), numbers)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
