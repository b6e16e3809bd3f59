"""The description of a dataset: meta/info.json of either version becomes one `DatasetInfo`.

Video keys, path templates and widths are read from the file, never assumed: LeRobot datasets differ.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla.atomic import read_json
from vla.data.hub import kind_hint, refuse_pointer
from vla.data.lerobot import fields
from vla.errors import DatasetError, did_you_mean
from vla.types import IMAGE_PREFIX, columns_of, name_of

INFO_PATH = "meta/info.json"
VERSIONS = ("v2.1", "v3.0")
CAMERA_DTYPES = ("video", "image")
DEFAULT_CHUNKS_SIZE = 1000
_PLAIN_DTYPE = re.compile("bool|float(16|32|64)?|u?int(8|16|32|64)?")


@dataclass(frozen=True)
class Feature:
    """One column or camera.

    Attributes:
        key: LeRobot's name, `"observation.state"`.
        dtype: `"float32"`, `"int64"`, `"bool"`, `"string"`, ..., `"video"` (in mp4) or `"image"` (encoded
            images in parquet).
        shape: Per frame. Cameras: (height, width, channels), whatever order the file stores.
        names: A name per dimension of a vector, or None.
        depth: What says that an image's pixels are distances, in words; None of all else.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None
    depth: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether this is an image per frame rather than a column of numbers or text."""
        return self.dtype in CAMERA_DTYPES

    @property
    def is_camera(self) -> bool:
        """Whether this is a colour image per frame: a map of distances is not."""
        return self.is_image and self.depth is None

    @property
    def is_numeric(self) -> bool:
        """Whether this is a column of numbers."""
        return self.numpy_dtype is not None

    @property
    def numpy_dtype(self) -> np.dtype | None:
        """The dtype of a column of numbers; None of cameras, text and what is unknown."""
        if not _PLAIN_DTYPE.fullmatch(self.dtype):
            return None
        dtype = np.dtype(self.dtype)
        return dtype if dtype.itemsize <= 8 else None

    @property
    def width(self) -> int:
        """Values per frame."""
        return math.prod(self.shape)

    def dimension(self, index: int) -> str:
        """Name one dimension for a message: `"dimension 3 (roll)"`, or nothing for a scalar."""
        if self.shape in ((), (1,)):
            return ""
        name = f" ({self.names[index]})" if self.names and len(self.names) > index else ""
        return f", dimension {index}{name}"


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset's description, the same for every version.

    Attributes:
        version: LeRobot's codebase version, `"v2.1"` or `"v3.0"`.
        fps: Frames per second.
        robot_type: Free text, or None.
        features: Feature by key, cameras included, in the file's order.
        total_episodes: Number of episodes in the whole dataset.
        total_frames: Number of frames in the whole dataset.
        chunks_size: Episodes (v2.1) or files (v3.0) per chunk folder.
        data_path: Template of parquet paths.
        video_path: Template of video paths; None without video.
        tasks: Instruction by task index.
    """

    version: str
    fps: float
    robot_type: str | None
    features: Mapping[str, Feature]
    total_episodes: int
    total_frames: int
    chunks_size: int
    data_path: str
    video_path: str | None
    tasks: Mapping[int, str] = field(default_factory=dict)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Keys of all colour cameras."""
        return tuple(key for key, feature in self.features.items() if feature.is_camera)

    @property
    def depth_maps(self) -> tuple[str, ...]:
        """Keys of images whose pixels are distances, which are not cameras."""
        return tuple(key for key, feature in self.features.items() if feature.depth is not None)

    @property
    def total_tasks(self) -> int:
        """Number of distinct instructions."""
        return len(self.tasks)

    def feature(self, key: str, what: str) -> Feature:
        """Return a feature, or raise a `DatasetError` that lists the features.

        Args:
            key: LeRobot's name.
            what: Its purpose in the message, `"the state"`.
        """
        if key not in self.features:
            parts = self.parts_of(key)
            hint = f" A list of columns is joined: {list(parts)}." if parts else ""
            hint = hint or did_you_mean(key, self.features)
            raise DatasetError(
                f"The dataset has no '{key}' for {what}; its features are {sorted(self.features)}.{hint}"
            )
        return self.features[key]

    def parts_of(self, key: str) -> tuple[str, ...]:
        """Return the vectors below a key, in the file's order: `observation.state.arm` of the state."""
        return tuple(
            name
            for name, feature in self.features.items()
            if name.startswith(f"{key}.") and feature.is_numeric and len(feature.shape) <= 1
        )

    def likely_columns(self, *keys: str) -> tuple[str, ...]:
        """Return the columns that probably hold a vector: the first of some keys, or its parts."""
        for key in keys:
            if found := (key,) if key in self.features else self.parts_of(key):
                return found
        return keys[:1]

    def vector(self, columns: str | Sequence[str], joined: str, what: str) -> Feature:
        """Return the state or the actions as one feature: a column, or several joined in their order.

        Joined, they are named where each of them is; a column of one value that has no name goes by its key.

        Args:
            columns: One column, or several.
            joined: What several are called together.
            what: Their purpose in messages, `"the state"`.

        Raises:
            ConfigError: No column is named, or one twice.
            DatasetError: There is no such column, or it is not a vector of numbers.
        """
        keys = columns_of(columns)
        parts = [self.feature(key, what) for key in keys]
        for part in parts:
            if not part.is_numeric or len(part.shape) > 1 or (len(parts) == 1 and not part.shape):
                raise DatasetError(
                    f"'{part.key}' cannot be {what}: it is {part.dtype} {list(part.shape)}, not a vector."
                )
        if len(parts) == 1:
            return parts[0]
        width = sum(part.width for part in parts)
        return Feature(name_of(columns, joined), "float32", (width,), _joined_names(parts))


def read_info(root: Path) -> DatasetInfo:
    """Read meta/info.json; the tasks stay empty, they are in other files.

    Raises:
        DatasetError: The file is missing, is not JSON, lacks a field, or is of an unknown version.
    """
    path = root / INFO_PATH
    refuse_pointer(path)
    hint = "" if path.exists() else kind_hint(root, root)
    values = read_json(path, DatasetError, f"a LeRobot dataset keeps its description there.{hint}")
    version = values.get("codebase_version")
    if version not in VERSIONS:
        raise DatasetError(
            f"{path}: 'codebase_version' is of version {fields.shown(version)}; this library reads "
            f"{' and '.join(VERSIONS)}. {_about_version(version)}"
        )
    about = str(path)
    features = fields.present(values, "features", about)
    if not isinstance(features, Mapping):
        raise DatasetError(f"{path}: 'features' must map keys to entries, got {fields.shown(features)}.")
    info = DatasetInfo(
        version=version,
        fps=fields.number(values, "fps", about),
        robot_type=values.get("robot_type") if isinstance(values.get("robot_type"), str) else None,
        features={key: _feature(key, entry, f"{about}, features.{key}") for key, entry in features.items()},
        total_episodes=fields.count(values, "total_episodes", about),
        total_frames=fields.count(values, "total_frames", about),
        chunks_size=_chunks_size(values, version, about),
        data_path=fields.text(values, "data_path", about),
        video_path=None if values.get("video_path") is None else fields.text(values, "video_path", about),
    )
    if info.fps <= 0:
        raise DatasetError(f"{path} says fps = {info.fps}, which is not a frame rate.")
    if info.total_episodes <= 0 or info.total_frames <= 0:
        raise DatasetError(
            f"{root} is empty: {path} says total_episodes = {info.total_episodes}, total_frames = "
            f"{info.total_frames}."
        )
    return info


def _about_version(version: Any) -> str:
    """Say what to do about a version that is not read here."""
    if f"v{version}" in VERSIONS:
        return f'Write "v{version}", as LeRobot does.'
    number = re.fullmatch(r"v?(\d+)\.(\d+)(\.\d+)?", version) if isinstance(version, str) else None
    if number is None:
        return "Correct it to the version that its files have."
    found = (int(number[1]), int(number[2]))
    if found < (3, 0):
        return "LeRobot's own scripts convert older datasets."
    return "It is newer than this library: look for a newer version of vla, or write the dataset as v3.0."


def _chunks_size(values: Mapping[str, Any], version: str, source: str) -> int:
    """Return the episodes of a chunk folder in v2.1; v3.0 says for each episode where it is."""
    if version != "v2.1" or values.get("chunks_size") is None:
        return DEFAULT_CHUNKS_SIZE
    size = fields.count(values, "chunks_size", source)
    if size < 1:
        raise DatasetError(f"{source}: 'chunks_size' must be at least 1, got {size}.")
    return size


def _feature(key: str, entry: Any, source: str) -> Feature:
    if not isinstance(entry, Mapping):
        raise DatasetError(f"{source} must be an entry with dtype and shape, got {fields.shown(entry)}.")
    dtype, names = fields.text(entry, "dtype", source), entry.get("names")
    sizes = fields.shape(fields.present(entry, "shape", source), source)
    if dtype in CAMERA_DTYPES:
        about = entry.get("info") or entry.get("video_info")
        return Feature(
            key,
            dtype,
            fields.image_shape(sizes, names, source),
            fields.flat(names) or None,
            fields.depth_reason(key, about),
        )
    if key.startswith(IMAGE_PREFIX) and len(sizes) == 3:
        raise DatasetError(
            f"{source}: 'dtype' is {fields.shown(dtype)}, but images {list(sizes)} are 'video' or 'image'."
        )
    return Feature(key, dtype, sizes, fields.dimension_names(key, names, sizes, source))


def _joined_names(parts: Sequence[Feature]) -> tuple[str, ...] | None:
    """Name the dimensions of several vectors; where two have a name in common, all name their column, too."""
    last = [part.key.rsplit(".", 1)[-1] for part in parts]
    own = [part.names or ((end,) if part.width == 1 else ()) for part, end in zip(parts, last, strict=True)]
    if not all(own):
        return None
    names = [name for group in own for name in group]
    if len(set(names)) < len(names):
        names = [f"{end}.{name}" for end, group in zip(last, own, strict=True) for name in group]
    return tuple(names)
