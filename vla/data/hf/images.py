"""Images and videos that a table of `datasets` holds or names."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vla.data.hf.columns import TableColumns, video_file, with_file
from vla.data.hf.export import START_SUFFIX
from vla.data.hf.order import EpisodeRows, scalar_column
from vla.data.images import check_size, decode_image
from vla.data.lerobot.episodes import VideoSpan
from vla.data.lerobot.schema import Feature
from vla.errors import DatasetError

_BATCH = 1000  # rows; of images so many are in memory at once


class TableImages:
    """Decodes single images of a table."""

    def __init__(self, columns: TableColumns, cameras: Mapping[str, Feature]) -> None:
        self._columns = columns
        self._cameras = cameras
        self._rows = {key: columns.table.rows.select_columns([key]).with_format("arrow") for key in cameras}

    def read(self, path: Path, row: int, key: str) -> np.ndarray:
        """Decode the image of one row.

        Args:
            path: Is not needed.
            row: Row of the table.
            key: Column.

        Returns:
            uint8 `[h, w, 3]`.

        Raises:
            DatasetError: It is not an image, or not as large as that of the table's first row.
        """
        what = f"{self._columns.table.name}, row {row}: '{key}'"
        stored = self._rows[key][row][key]
        if key in self._columns.array_shapes:
            pixels = self._from_array(stored, key)
        else:
            pixels = decode_image(with_file(stored[0].as_py(), self._columns.table.root), what)
        check_size(pixels.shape[:2], what, self._cameras[key].shape[:2])
        return pixels

    def _from_array(self, stored: pa.ChunkedArray, key: str) -> np.ndarray:
        shape = self._columns.array_shapes[key]
        pixels = self._columns.as_array(stored, Feature(key, "uint8", shape))[0]
        if len(shape) == 2:
            pixels = pixels[..., None]
        elif shape[2] not in (1, 3, 4):
            pixels = pixels.transpose(1, 2, 0)
        return np.ascontiguousarray(np.broadcast_to(pixels[..., :3], (*pixels.shape[:2], 3)))


def video_spans(columns: TableColumns, key: str, episodes: Sequence[EpisodeRows]) -> list[VideoSpan]:
    """Return where each episode is in the videos of a camera.

    Raises:
        DatasetError: An episode is in several videos, or in none; or no column says where in a video it
            starts, and there is one without its camera, or several episodes are in one video.
    """
    table = columns.table
    names = np.concatenate([_video_names(part) for part in _batches(columns, key)])
    starts = np.zeros(len(names))
    is_whole = (start_key := f"{key}{START_SUFFIX}") not in table.rows.column_names
    if is_whole:
        _refuse_orphans(columns, key)
    else:
        what = f"{table.name}: the column '{start_key}' cannot be where an episode starts"
        columns.check_there(start_key, "where an episode starts in its video")
        starts = scalar_column(columns, start_key, what).astype(np.float64)
    rows = table.rows.select_columns([key]).with_format("arrow")
    spans = []
    for episode in episodes:
        for what, values in (("video", names), ("from_timestamp", starts)):
            if len(several := np.unique(values[episode.rows])) > 1:
                raise DatasetError(
                    f"{table.name}: the rows of episode {episode.label} name more than one {what} for "
                    f"'{key}': {several[0]} and {several[1]}. An episode is in one piece of one video."
                )
        first = int(episode.rows[0])
        file = video_file(rows[first][key][0].as_py(), table.root, f"{table.name}, row {first}: '{key}'")
        spans.append(VideoSpan(str(file), float(starts[first]), whole=is_whole))
    if is_whole:
        _refuse_shared(table.name, key, spans, episodes)
    return spans


def _refuse_orphans(columns: TableColumns, key: str) -> None:
    """Raise `DatasetError` where a column says when episodes start in the videos of a column that is gone."""
    names = columns.table.rows.column_names
    for orphan in (name for name in names if name.endswith(START_SUFFIX)):
        if orphan.removesuffix(START_SUFFIX) not in names:
            raise DatasetError(
                f"{columns.table.name}: '{orphan}' says where episodes start in the videos of a column that "
                f"the table does not have, and nothing does so for '{key}'. Where '{key}' is that column "
                f"renamed, rename the other as well: "
                f"Dataset.rename_column('{orphan}', '{key}{START_SUFFIX}'). Else remove it."
            )


def _refuse_shared(name: str, key: str, spans: Sequence[VideoSpan], episodes: Sequence[EpisodeRows]) -> None:
    owner: dict[str, EpisodeRows] = {}
    for span, episode in zip(spans, episodes, strict=True):
        other = owner.setdefault(span.path, episode)
        if other is not episode:
            raise DatasetError(
                f"{name}: '{key}' of episodes {other.label} and {episode.label} is in {span.path}, and "
                f"no column '{key}{START_SUFFIX}' says where in it each of them starts, in seconds. Keep "
                "or rename that column together with the camera's."
            )


def _batches(columns: TableColumns, key: str) -> Iterator[pa.Array]:
    rows = columns.table.rows.select_columns([key]).with_format("arrow")
    for start in range(0, len(rows), _BATCH):
        yield pa.concat_arrays(rows[start : start + _BATCH][key].chunks)


def _video_names(part: pa.Array) -> np.ndarray:
    """Return what each row's video can be told by: its path, and how many bytes of it are in the table."""
    paths = part.field("path").fill_null("").to_numpy(zero_copy_only=False)
    sizes = (
        pc.call_function("binary_length", [part.field("bytes")]).fill_null(-1).to_numpy(zero_copy_only=False)
    )
    return np.array(
        [path if size < 0 else f"{path} ({size} bytes)" for path, size in zip(paths, sizes, strict=True)],
        object,
    )
