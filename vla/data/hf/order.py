"""Which rows of a table make up which episode, in which order."""

from dataclasses import dataclass

import numpy as np

from vla.data.hf.columns import TableColumns
from vla.data.hf.options import ColumnNames
from vla.errors import DatasetError

FRAME_KEY, TIMESTAMP_KEY = "frame_index", "timestamp"


@dataclass(frozen=True)
class EpisodeRows:
    """One episode of a table.

    Attributes:
        index: Its number: what the column says where it holds whole numbers, else its place among the
            episodes in the order in which they first occur.
        label: What the column says.
        rows: Its rows in the table, frame by frame, int64 `[n]`.
    """

    index: int
    label: str
    rows: np.ndarray


def order_rows(columns: TableColumns, names: ColumnNames) -> list[EpisodeRows]:
    """Sort a table's rows into episodes.

    Where the table numbers its frames, the rows may stand in any order, and each episode's frames must be
    there one after the other, from any number on. Where it does not, the rows of an episode must be next to
    each other.

    Returns:
        The episodes by their index.

    Raises:
        DatasetError: A column is missing or is of another kind, a frame is missing or comes twice, or rows
            without a frame number are not next to each other.
    """
    columns.check_there(names.episode, "the episode (data.columns.episode, --column episode=NAME)")
    labels, codes = _episode_codes(columns, names.episode)
    frames = frame_numbers(columns, names)
    order = np.argsort(codes, kind="stable") if frames is None else np.lexsort((frames, codes))
    starts = np.searchsorted(codes[order], np.arange(len(labels)))
    episodes = []
    for place, rows in enumerate(np.split(order, starts[1:])):
        _check_rows(columns.table.name, str(labels[place]), rows, frames)
        index = labels[place] if isinstance(labels[place], int) else place
        episodes.append(EpisodeRows(int(index), str(labels[place]), rows))
    return episodes


def _episode_codes(columns: TableColumns, key: str) -> tuple[list[int] | list[str], np.ndarray]:
    """Return each episode's label, and for every row the place of its own."""
    what = f"{columns.table.name}: the column '{key}' cannot be the episode"
    every = np.arange(len(columns.table.rows))
    if columns.features[key].dtype == "string":
        found = columns.texts(key, every)
        used, first = np.unique(found.codes, return_index=True)
        used = used[np.argsort(first)]
        place = np.zeros(len(found.texts), dtype=np.int64)
        place[used] = np.arange(len(used))
        labels = [found.texts[code] for code in used.tolist()]
        if "" in labels:
            row = int(np.flatnonzero(found.codes == used[labels.index("")])[0])
            raise DatasetError(f"{what}: row {row} is empty.")
        return labels, place[found.codes]
    values = _whole_numbers(columns, key, what)
    if len(values) and values.min() < 0:
        raise DatasetError(f"{what}: row {int(values.argmin())} holds {int(values.min())}.")
    numbers, codes = np.unique(values, return_inverse=True)
    return numbers.tolist(), codes.reshape(-1)


def frame_numbers(columns: TableColumns, names: ColumnNames) -> np.ndarray | None:
    """Return each row's number of its frame, `[n]`; None where the table has none.

    Raises:
        DatasetError: The column is missing or of another kind, or a number is not whole.
    """
    if names.frame is None and FRAME_KEY not in columns.table.rows.column_names:
        return None
    key = names.frame or FRAME_KEY
    columns.check_there(key, "the frame (data.columns.frame, --column frame=NAME)")
    return _whole_numbers(columns, key, f"{columns.table.name}: the column '{key}' cannot be the frame")


def _whole_numbers(columns: TableColumns, key: str, what: str) -> np.ndarray:
    values = scalar_column(columns, key, what)
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
    if len(wrong := np.flatnonzero(whole != values)):
        raise DatasetError(f"{what}: row {wrong[0]} holds {values[wrong[0]]}, which is not a whole number.")
    return whole


def scalar_column(columns: TableColumns, key: str, what: str, rows: np.ndarray | None = None) -> np.ndarray:
    """Return a column of one number a row, `[n]`.

    Args:
        columns: The table's columns.
        key: The column's.
        what: The beginning of a message: what it cannot be.
        rows: Which rows; all by default.

    Raises:
        DatasetError: It holds something else.
    """
    feature = columns.features[key]
    if not feature.is_numeric or feature.width != 1:
        kind = columns.table.rows.features[key]
        raise DatasetError(f"{what}: its type is {kind}, expected one number a row.")
    stored = columns.stored(key, rows)
    if stored.null_count:
        row = int(np.flatnonzero(stored.is_null().to_numpy())[0])
        raise DatasetError(f"{what}: row {row} is empty.")
    values = columns.as_array(stored, feature).reshape(-1)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DatasetError(f"{what}: row {row} is {values[row]}.")
    return values


def _check_rows(name: str, label: str, rows: np.ndarray, frames: np.ndarray | None) -> None:
    if frames is None:
        if len(apart := np.flatnonzero(np.diff(rows) != 1)):
            raise DatasetError(
                f"{name}: the rows of episode {label} are not next to each other (rows {rows[apart[0]]} and "
                f"{rows[apart[0] + 1]}). A column with the number of the frame (data.columns.frame) says how "
                "they are to be sorted."
            )
        return
    numbers = frames[rows]
    if len(wrong := np.flatnonzero(np.diff(numbers) != 1)):
        place = int(wrong[0])
        before, after = int(numbers[place]), int(numbers[place + 1])
        what = f"comes twice (rows {rows[place]} and {rows[place + 1]})"
        if before != after:
            what = f"is followed by frame {after}: those in between are missing"
        raise DatasetError(
            f"{name}: frame {before} of episode {label} {what}. Chunks of actions need every frame once."
        )
