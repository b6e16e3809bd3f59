"""The rows of a dataset without its images: parquet is read once when opened, numpy from then on.

Every low-dimensional column of the selected episodes is held in memory (a million frames of 14 + 14
numbers are 112 MB), so that a chunk is one numpy index and never a parquet read. Data that cannot be
learned from (NaN, a row of another width, a missing episode) are refused here, before a run starts.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vla.data.lerobot.episodes import Episode
from vla.data.lerobot.schema import DatasetInfo, Feature
from vla.errors import DatasetError

_REQUIRED = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_READERS = 8  # threads; parquet decoding releases the interpreter, and a v2.1 dataset has many small files
_log = logging.getLogger(__name__)


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
    """

    numbers: Mapping[str, np.ndarray]
    texts: Mapping[str, TextColumn]
    file_rows: np.ndarray


def read_columns(root: Path, info: DatasetInfo, episodes: Sequence[Episode]) -> Columns:
    """Read and check the rows of some episodes, in the order of `episodes`.

    Raises:
        DatasetError: A file is missing or corrupt, lacks a column, holds other rows than the metadata
            says, a value that is not finite, a vector of another width, or an unknown task.
    """
    features = _readable(info)
    by_file: dict[str, list[int]] = {}
    for position, episode in enumerate(episodes):
        by_file.setdefault(episode.data_path, []).append(position)

    def read(path: str) -> dict[int, dict[str, np.ndarray]]:
        return _read_file(root / path, features, [(p, episodes[p]) for p in by_file[path]])

    parts: dict[int, dict[str, np.ndarray]] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for part in pool.map(read, by_file):
            parts.update(part)
    keys = [*features, "file_rows"]
    whole = {key: np.concatenate([parts[p][key] for p in range(len(episodes))]) for key in keys}
    _check_tasks(info, whole["task_index"])
    texts = {key: _encode(whole.pop(key)) for key, feature in features.items() if feature.dtype == "string"}
    return Columns(whole, texts, whole.pop("file_rows"))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read columns of one parquet file (all of them by default).

    Raises:
        DatasetError: The file is missing or corrupt, or lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            # Top-level names: a list column's leaves are called "action.list.element" otherwise.
            missing = sorted(set(columns or ()) - set(file.schema_arrow.names))
            if missing:
                raise DatasetError(f"{path} has no column {missing}; it has {file.schema_arrow.names}.")
            return file.read(None if columns is None else list(columns), use_threads=False)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing: the dataset is incomplete.") from error
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not a readable parquet file: {_first_line(error)}") from error


def _readable(info: DatasetInfo) -> dict[str, Feature]:
    missing = [key for key in _REQUIRED if key not in info.features]
    if missing:
        raise DatasetError(f"meta/info.json lists no feature {missing}, which every LeRobot dataset has.")
    features = {}
    for key, feature in info.features.items():
        if feature.is_camera:
            continue
        if feature.dtype == "string" or feature.is_numeric:
            features[key] = feature
        else:
            _log.info("Feature '%s' has the dtype '%s', which is not read.", key, feature.dtype)
    return features


def _read_file(
    path: Path, features: Mapping[str, Feature], wanted: Sequence[tuple[int, Episode]]
) -> dict[int, dict[str, np.ndarray]]:
    """Read one file's columns and cut out the wanted episodes, by their position in the selection."""
    table = read_table(path, list(features))
    spans = _episode_spans(path, table)
    arrays = {key: _to_numpy(path, table[key], feature) for key, feature in features.items()}
    arrays["file_rows"] = np.arange(len(table))
    parts = {}
    for position, episode in wanted:
        start, stop = spans.get(episode.index, (0, 0))
        if stop - start != episode.length:
            raise DatasetError(
                f"{path}: the metadata says that episode {episode.index} has {episode.length} frames here, "
                f"but the file holds {stop - start} rows of it."
            )
        part = {key: values[start:stop] for key, values in arrays.items()}
        _check_part(path, episode, part, features)
        parts[position] = part
    return parts


def _episode_spans(path: Path, table: pa.Table) -> dict[int, tuple[int, int]]:
    indices = table["episode_index"].to_numpy()
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


def _to_numpy(path: Path, column: pa.ChunkedArray, feature: Feature) -> np.ndarray:
    """Flatten an Arrow column to `[n]` or `[n, *shape]` of the feature's dtype."""
    array = column.combine_chunks()
    if feature.dtype == "string":
        return array.fill_null("").to_numpy(zero_copy_only=False)
    num_rows, nested = len(array), False
    while pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        lengths = pc.call_function("list_value_length", [array]).fill_null(-1).to_numpy(zero_copy_only=False)
        odd = np.flatnonzero(lengths != lengths[0]) if len(lengths) else lengths
        if len(odd) or (len(lengths) and lengths[0] < 0):
            row = int(odd[0]) if len(odd) else 0
            raise DatasetError(
                f"{path}, row {row}: '{feature.key}' has {lengths[row]} values where the first row has "
                f"{lengths[0]} (-1: empty)."
            )
        array, nested = array.flatten(), True
    if array.null_count and not pa.types.is_floating(array.type):
        raise DatasetError(f"{path}: column '{feature.key}' has {array.null_count} empty values.")
    values = array.to_numpy(zero_copy_only=False)  # an empty float becomes NaN and is refused below
    expected = int(np.prod(feature.shape))
    if values.dtype.kind not in "fiub" or len(values) != num_rows * expected:
        raise DatasetError(
            f"{path}: meta/info.json says that '{feature.key}' is {feature.dtype} {list(feature.shape)}, but "
            f"the column has type {column.type} with {len(values) // max(num_rows, 1)} values a row."
        )
    values = values.astype(feature.numpy_dtype, copy=False)
    return values.reshape(num_rows, *feature.shape) if nested else values


def _check_part(
    path: Path, episode: Episode, part: Mapping[str, np.ndarray], features: Mapping[str, Feature]
) -> None:
    frames = part["frame_index"]
    if not np.array_equal(frames, np.arange(episode.length)):
        row = int(np.flatnonzero(frames != np.arange(episode.length))[0])
        raise DatasetError(
            f"{path}: row {row} of episode {episode.index} should have frame_index {row}, got {frames[row]}."
        )
    for key, feature in features.items():
        values = part[key]
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            rows = values.reshape(len(values), -1)
            frame, dimension = np.argwhere(~np.isfinite(rows))[0].tolist()
            raise DatasetError(
                f"{path}: '{key}' of episode {episode.index}, frame {frame}{feature.dimension(dimension)} is "
                f"{rows[frame, dimension]}. Repair or leave out this episode; a column that nobody uses can "
                "be dropped from meta/info.json."
            )


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
