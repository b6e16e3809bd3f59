"""The columns of a table of `datasets` as features and arrays.

| type of the column | becomes |
|---|---|
| a number, or lists or an array of numbers | numbers; as long in every row |
| text, class labels | text |
| `Image`, encoded bytes, arrays uint8 of height, width and channels, or grey without channels | a camera |
| `Video` | a camera |

Anything else is left out, with the reason.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vla.atomic import SaveError, atomic_write
from vla.data.hf.source import Table
from vla.data.images import image_header
from vla.data.lerobot.columns import TextColumn, to_numpy
from vla.data.lerobot.fields import depth_reason, grey_depth
from vla.data.lerobot.schema import Feature
from vla.data.video import check_container
from vla.errors import DatasetError, did_you_mean
from vla.paths import kept

_MOST_NAMES = 20
_VIDEOS = "vla-videos"
_MOST_VALUES = 1 << 16
_CHANNELS = (1, 3, 4)
_LEAST_SIDE = 8  # pixels of what numbers in three dimensions may have been meant for an image
_IMAGE_NAMES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


class TableColumns:
    """A table's columns, read one by one.

    Args:
        table: The table.

    Attributes:
        features: Columns that can be read, by key.
        left_out: Why others cannot, by key.
        broken: Those of them that are images or videos.
        array_shapes: Shape of the images that are stored as arrays of numbers, by key.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.features: dict[str, Feature] = {}
        self.left_out: dict[str, str] = {}
        self.broken: list[str] = []
        self.array_shapes: dict[str, tuple[int, ...]] = {}
        import datasets

        for key, kind in table.rows.features.items():
            try:
                self.features[key] = self._describe(key, kind)
            except DatasetError as error:
                self.left_out[key] = str(error)
                if isinstance(kind, datasets.Image | datasets.Video):
                    self.broken.append(key)

    def stored(self, key: str, rows: np.ndarray | None = None) -> pa.ChunkedArray:
        """Return a column as it is stored: of some rows, or of all."""
        chosen = self.table.rows.select_columns([key])
        if rows is not None:
            chosen = chosen.select(rows)
        return chosen.with_format("arrow")[:][key]

    def first(self, key: str) -> Any:
        """Return the first value of a column, as it is stored."""
        return self.table.rows.select_columns([key]).with_format("arrow")[0][key][0].as_py()

    def check_there(self, key: str, what: str) -> None:
        """Raise `DatasetError` unless the table has a column that can be read.

        Args:
            key: Its name.
            what: Its purpose, and the option that names another: `"the task (data.columns.task)"`.
        """
        names = self.table.rows.column_names
        if key not in names:
            raise DatasetError(
                f"{self.table.name} has no column '{key}' for {what}; it has "
                f"{_first_of(names)}.{did_you_mean(key, names)}"
            )
        if key in self.left_out:
            raise DatasetError(f"{self.table.name}: '{key}' cannot be used for {what}: {self.left_out[key]}")

    def numbers(self, key: str, rows: np.ndarray) -> np.ndarray:
        """Return a column of numbers, `[n]` or `[n, *shape]`.

        Raises:
            DatasetError: A value is missing, or rows differ in length.
        """
        try:
            return self.as_array(self.stored(key, rows), self.features[key])
        except DatasetError as error:
            if np.array_equal(rows, np.arange(len(rows))):
                raise
            raise DatasetError(f"{error} (Rows are counted in the order of episodes and frames.)") from error

    def as_array(self, stored: pa.ChunkedArray, feature: Feature) -> np.ndarray:
        """Return numbers as they are stored as an array; raises `DatasetError` as `numbers` does."""
        values = to_numpy(Path(self.table.name), stored, feature)
        return values if values.flags.writeable else values.copy()  # it may be the file itself

    def texts(self, key: str, rows: np.ndarray) -> TextColumn:
        """Return a column of texts; an empty field is an empty text."""
        import datasets

        column, kind = self.stored(key, rows), self.table.rows.features[key]
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        if isinstance(kind, datasets.ClassLabel):
            return _label_texts(column, list(kind.names))
        encoded = pc.call_function("dictionary_encode", [column.cast(pa.string()).fill_null("")])
        texts, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
        return TextColumn(tuple(texts), codes.astype(np.int32))

    def like_images(self) -> list[str]:
        """Return the columns that are no camera, but look as if they were meant to be one."""
        return [
            key
            for key, feature in self.features.items()
            if not feature.is_image
            and (
                self._names_image(key)
                if feature.dtype == "string"
                else len(feature.shape) == 3 and min(_as_image(feature.shape) or (0,)) >= _LEAST_SIDE
            )
        ]

    def no_image(self, key: str) -> str:
        """Return why a column that can be read is not a camera, and what would make it one."""
        feature, kind = self.features[key], self.table.rows.features[key]
        if self._names_image(key):
            return (
                f"it holds paths as text; Dataset.cast_column('{key}', datasets.Image()) makes them images."
            )
        held = kind if feature.dtype == "string" else f"{feature.dtype} {list(feature.shape)}"
        return (
            f"its rows are {held}. Images are of the type datasets.Image, encoded bytes, or arrays of uint8 "
            "of height, width and channels (datasets.Array3D), or grey without channels (Array2D)."
        )

    def _names_image(self, key: str) -> bool:
        first = self.first(key)
        return isinstance(first, str) and first.lower().endswith(_IMAGE_NAMES)

    def _describe(self, key: str, kind: Any) -> Feature:
        import datasets

        if isinstance(kind, datasets.Video):
            return self._video(key)
        if isinstance(kind, datasets.Image):
            return self._image(key)
        if isinstance(kind, datasets.ClassLabel):
            return Feature(key, "string", (1,))
        leaf, is_nested = kind, False
        while isinstance(leaf, datasets.List | datasets.LargeList):
            leaf, is_nested = leaf.feature, True
        if isinstance(leaf, datasets.Array2D | datasets.Array3D | datasets.Array4D | datasets.Array5D):
            dtype, is_nested = leaf.dtype, True
        elif isinstance(leaf, datasets.Value):
            dtype = leaf.dtype
        elif is_nested and isinstance(leaf, datasets.Image | datasets.Video):
            raise DatasetError("its rows hold several images each, and a row must be one frame.")
        else:
            raise DatasetError(f"its type {type(leaf).__name__} is not read.")
        if dtype in ("string", "large_string", "string_view") and not is_nested:
            return Feature(key, "string", (1,))
        if dtype in ("binary", "large_binary") and not is_nested:
            return self._image(key)
        return self._numeric(key, dtype, is_nested)

    def _numeric(self, key: str, dtype: str, is_nested: bool) -> Feature:
        feature = Feature(key, dtype, (1,))
        if not feature.is_numeric:
            raise DatasetError(f"its type {'list of ' if is_nested else ''}{dtype} is not read.")
        if not is_nested:
            return feature
        shape = _shape_of(self.first(key))
        if not shape:
            raise DatasetError("its first row is empty.")
        if dtype == "uint8" and (height_width := _as_image(shape)):
            self.array_shapes[key] = shape
            return Feature(key, "image", (*height_width, 3), depth=depth_reason(key, None))
        if math.prod(shape) > _MOST_VALUES:
            raise DatasetError(
                f"it has {math.prod(shape)} values a row of type {dtype}. (Images are of the type "
                "datasets.Image, encoded bytes, or arrays of uint8 of height, width and channels.)"
            )
        return Feature(key, dtype, shape)

    def _image(self, key: str) -> Feature:
        size, reason = image_header(
            with_file(self.first(key), self.table.root), f"{self.table.name}, row 0: '{key}'"
        )
        return Feature(key, "image", (*size, 3), depth=reason or depth_reason(key, None))

    def _video(self, key: str) -> Feature:
        path = video_file(self.first(key), self.table.root, f"{self.table.name}, row 0: '{key}'")
        size, reason = _video_header(path)
        return Feature(key, "video", (*size, 3), depth=reason or depth_reason(key, None))


def _video_header(path: Path) -> tuple[tuple[int, int], str | None]:
    """Return (height, width) of a video, and why it has no colours, or None."""
    check_container(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DatasetError(f"{path} holds no video stream.")
            codec = container.streams.video[0].codec_context
            return (codec.height, codec.width), grey_depth(codec.pix_fmt)
    except (av.FFmpegError, OSError) as error:
        raise DatasetError(f"{path} cannot be opened as a video (truncated or corrupt?): {error}.") from error


def with_file(value: Any, root: Path) -> Any:
    """Return a stored image with its bytes, read from its file where it names one."""
    if not isinstance(value, dict) or value.get("bytes") is not None or not value.get("path"):
        return value
    path = local_path(value["path"], root)
    try:
        return {"bytes": path.read_bytes()}
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from error


def video_file(value: Any, root: Path, what: str) -> Path:
    """Return the file of a stored video.

    A video that is stored in the table itself is written into the cache of `datasets`, under a name that
    follows from its content.

    Raises:
        DatasetError: There is none, it is not on this machine, or cannot be written there.
    """
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, None)
    if data is None:
        if not path:
            raise DatasetError(f"{what} holds no video.")
        return local_path(path, root)
    from datasets import config

    name = hashlib.sha256(data).hexdigest()[:32] + (Path(path).suffix if path else ".mp4")
    file = kept(config.HF_DATASETS_CACHE) / _VIDEOS / name
    try:
        if not file.is_file() or file.stat().st_size != len(data):
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, data)
    except (OSError, SaveError) as error:
        raise DatasetError(f"{what} cannot be written to {file}, to be decoded: {error}.") from error
    return file


def local_path(path: str, root: Path) -> Path:
    """Return a file that a table names: as it is, or below the table's folder.

    Raises:
        DatasetError: It is not on this machine.
    """
    if "://" in path:
        raise DatasetError(f"{path} is not on this machine: download it, and store its path there.")
    return root / path


def _as_image(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return height and width of what may be an image: of colours, of one channel, or grey without any."""
    if len(shape) == 2 and min(shape) >= _LEAST_SIDE:
        return shape[0], shape[1]
    if len(shape) != 3:
        return None
    if shape[2] in _CHANNELS:
        return shape[0], shape[1]
    return (shape[1], shape[2]) if shape[0] in _CHANNELS else None


def _shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of nested lists, by their first elements; nothing where one of them is empty."""
    sizes = []
    while isinstance(value, list):
        sizes.append(len(value))
        value = value[0] if value else None
    return tuple(sizes) if sizes and 0 not in sizes else ()


def _label_texts(column: pa.Array, names: list[str]) -> TextColumn:
    codes = column.fill_null(-1).to_numpy(zero_copy_only=False)
    # One past the names stands for rows without a label.
    codes = np.where((codes < 0) | (codes >= len(names)), len(names), codes).astype(np.int32)
    texts = (*names, "") if (codes == len(names)).any() else tuple(names)
    return TextColumn(texts, codes)


def _first_of(names: list[str]) -> str:
    """Return a table's columns for a message: not hundreds of them."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{names[:_MOST_NAMES]}{more}"
