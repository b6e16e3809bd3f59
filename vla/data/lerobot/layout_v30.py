"""Layout of a v3.0 dataset on disk, for the writer: path templates, info.json, the task table."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vla.data.writing.encoder import KEY_FRAME_EVERY, stored_format

CODEBASE_VERSION = "v3.0"
CHUNKS_SIZE = 1000
"""Files per chunk folder."""
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

SCALARS = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_(), "string": pa.string()}
DEFAULT_COLUMNS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""The columns that every LeRobot dataset has."""


def make_features(
    cameras: Mapping[str, tuple[int, int]],
    names: Mapping[str, Sequence[str]],
    extra: Mapping[str, str],
    fps: int,
    codec: str,
) -> dict[str, Any]:
    """Describe every column and camera as info.json does.

    Args:
        cameras: Key to (height, width).
        names: Vector column to the names of its dimensions.
        extra: Scalar column to dtype.
        fps: Frames per second.
        codec: What the videos are encoded with.
    """
    features: dict[str, Any] = {}
    stored, pixels = stored_format(codec)
    for key, (height, width) in cameras.items():
        features[key] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": stored,
                "video.pix_fmt": pixels,
                "video.is_depth_map": False,
                "video.fps": fps,
                "video.channels": 3,
                "video.g": KEY_FRAME_EVERY,
                "has_audio": False,
            },
        }
    for key, dimensions in names.items():
        features[key] = {"dtype": "float32", "shape": [len(dimensions)], "names": list(dimensions)}
    for key, dtype in {**extra, **DEFAULT_COLUMNS}.items():
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def make_info(
    features: Mapping[str, Any],
    *,
    fps: int,
    robot_type: str,
    totals: tuple[int, int, int],
    limits_mb: tuple[float, float],
) -> dict[str, Any]:
    """Return the content of info.json.

    Args:
        features: See `make_features`.
        fps: Frames per second.
        robot_type: Free text.
        totals: Numbers of episodes, frames and tasks.
        limits_mb: Sizes after which a data file and a video file are followed by a new one.
    """
    episodes, frames, tasks = totals
    has_video = any(feature["dtype"] == "video" for feature in features.values())
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": robot_type,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": CHUNKS_SIZE,
        "data_files_size_in_mb": max(1, round(limits_mb[0])),  # LeRobot reads whole numbers here
        "video_files_size_in_mb": max(1, round(limits_mb[1])),
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if has_video else None,
        "features": features,
    }


def rows_table(schema: pa.Schema, columns: Mapping[str, np.ndarray]) -> pa.Table:
    """Return the rows of frames as they are stored; vectors are `[n, d]`."""
    arrays = []
    for field in schema:
        values = columns[field.name]
        if values.ndim == 2:
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]))
        else:
            arrays.append(pa.array(values, type=field.type))
    return pa.table(arrays, schema=schema)


def tasks_table(tasks: Mapping[str, int]) -> pa.Table:
    """Return the tasks as pandas writes a frame indexed by task text: the metadata names the index."""
    unicode = {"pandas_type": "unicode", "numpy_type": "object"}
    integer = {"pandas_type": "int64", "numpy_type": "int64"}
    encoding = {"encoding": "UTF-8"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [{"name": None, "field_name": None, **unicode, "metadata": encoding}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", **integer, "metadata": None},
            {"name": "task", "field_name": "task", **unicode, "metadata": None},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    schema = pa.schema(
        [("task_index", pa.int64()), ("task", pa.string())], metadata={"pandas": json.dumps(pandas)}
    )
    return pa.table([list(tasks.values()), list(tasks)], schema=schema)
