"""A LeRobot dataset as a table of `datasets`: one frame a row.

| column | type |
|---|---|
| every column of numbers or text | as it is, under its own key |
| `task` | text: the instruction |
| a camera that is stored as images | `Image`: the stored bytes |
| a camera that is stored in videos, `videos="video"` | `Video`: the path of the file |
| `<camera>.from_timestamp`, next to a `Video` | seconds: the time of the episode's start in it |
| a camera that is stored in videos, `videos="images"` | `Image`: the frame, decoded by PyAV, without loss |
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from vla.data.frames import FrameStore
from vla.data.lerobot.columns import Columns, read_table
from vla.data.lerobot.episodes import Episode
from vla.data.lerobot.schema import Feature
from vla.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    import datasets

Videos = Literal["video", "images"]
"""How cameras that are stored in videos appear."""

TASK_KEY, START_SUFFIX = "task", ".from_timestamp"
_LAYOUT = "1"
"""Changed whenever the columns of the same dataset change, so that no older table is found in the cache."""


@dataclass(frozen=True)
class Recordings:
    """What a table is made from: the selected episodes of a dataset.

    Attributes:
        root: Its folder.
        fingerprint: Its fingerprint.
        episodes: The episodes.
        spans: Their frames.
        columns: Numbers and texts of all frames.
        tasks: Instruction by task index.
        cameras: Cameras by key.
        frames: Decodes them.
        locate: Path of a video by its name in the dataset.
    """

    root: Path
    fingerprint: str
    episodes: Sequence[Episode]
    spans: Sequence[slice]
    columns: Columns
    tasks: Mapping[int, str]
    cameras: Mapping[str, Feature]
    frames: FrameStore
    locate: Callable[[str], Path]


def to_table(
    recordings: Recordings, *, streaming: bool = False, videos: Videos | None = None
) -> "datasets.Dataset | datasets.IterableDataset":
    """Return a dataset as a table of `datasets`.

    Args:
        recordings: The dataset.
        streaming: Return an `IterableDataset`, an episode a shard, which writes no file. A `Dataset` with
            images is written to the cache of `datasets` first, once.
        videos: Whether frames of videos appear as images, decoded by PyAV, or as the video they are in (whose
            decoded access in `datasets` needs torchcodec). By default as images where streamed.

    Raises:
        ConfigError: `videos` is something else.
        DatasetError: An image or a frame cannot be read, or the cache cannot be written.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    if videos not in (None, "video", "images"):
        raise ConfigError(f"videos must be 'video' or 'images', got {videos!r}.")
    chosen: Videos = videos or ("images" if streaming else "video")
    features = _features(recordings, chosen)
    places = list(range(len(recordings.episodes)))
    made_from = {"recordings": recordings, "videos": chosen, "places": places}
    if streaming:
        # Frames are encoded only to be decoded by those who read the row: what costs least will do.
        made_from["encoding"] = "BMP"
        return datasets.IterableDataset.from_generator(rows_of, features=features, gen_kwargs=made_from)
    if not any(isinstance(feature, datasets.Image) for feature in features.values()):
        table = pa.table(_arrays(recordings, features), schema=features.arrow_schema)
        return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
    try:
        return datasets.Dataset.from_generator(
            rows_of,
            features=features,
            gen_kwargs=made_from | {"encoding": "PNG"},
            fingerprint=_fingerprint(recordings, chosen),
        )
    except DatasetGenerationError as error:
        raise DatasetError(f"{recordings.root} cannot be made a table: {error.__cause__ or error}") from error


def rows_of(
    recordings: Recordings, videos: Videos, places: Sequence[int], encoding: str
) -> Iterator[dict[str, Any]]:
    """Yield the rows of some episodes, by their places in the selection.

    Args:
        recordings: The dataset.
        videos: How its videos appear.
        places: Which episodes.
        encoding: Pillow's name of the format that frames of videos are encoded in.
    """
    tables: dict[str, pa.Table] = {}
    stored = [key for key, camera in recordings.cameras.items() if camera.dtype == "image"]
    for place in places:
        episode, span = recordings.episodes[place], recordings.spans[place]
        if stored and episode.data_path not in tables:
            tables = {episode.data_path: read_table(recordings.root / episode.data_path, stored)}
        for frame, row in enumerate(range(span.start, span.stop)):
            found = {key: values[row] for key, values in recordings.columns.numbers.items()}
            found |= {key: text[row] for key, text in recordings.columns.texts.items()}
            found[TASK_KEY] = recordings.tasks[int(recordings.columns.numbers["task_index"][row])]
            for key, camera in recordings.cameras.items():
                if camera.dtype == "image":
                    value = tables[episode.data_path][key][int(recordings.columns.file_rows[row])].as_py()
                    found[key] = value if isinstance(value, dict) else {"bytes": value, "path": None}
                elif videos == "images":
                    pixels = recordings.frames.get(place, frame, key)
                    found[key] = {"bytes": _encoded(pixels, encoding), "path": None}
                else:
                    part = episode.videos[key]
                    found[key] = {"bytes": None, "path": str(recordings.locate(part.path))}
                    found[key + START_SUFFIX] = part.start
            yield found


def _features(recordings: Recordings, videos: Videos) -> "datasets.Features":
    import datasets

    features: dict[str, Any] = {}
    for key, camera in recordings.cameras.items():
        if camera.dtype == "image" or videos == "images":
            features[key] = datasets.Image()
        else:
            features[key] = datasets.Video()
            features[key + START_SUFFIX] = datasets.Value("float64")
    for key, values in recordings.columns.numbers.items():
        feature: Any = datasets.Value(values.dtype.name)
        for size in reversed(values.shape[1:]):
            feature = datasets.List(feature, length=size)
        features[key] = feature
    features |= dict.fromkeys(recordings.columns.texts, datasets.Value("string"))
    features[TASK_KEY] = datasets.Value("string")
    return datasets.Features(features)


def _arrays(recordings: Recordings, features: "datasets.Features") -> dict[str, pa.Array]:
    """Return all columns at once, of a dataset without images."""
    lengths = [episode.length for episode in recordings.episodes]
    arrays: dict[str, pa.Array] = {}
    for key in recordings.cameras:
        parts = [episode.videos[key] for episode in recordings.episodes]
        paths = np.repeat(np.array([str(recordings.locate(part.path)) for part in parts], object), lengths)
        fields = [pa.nulls(len(paths), pa.binary()), pa.array(paths, pa.string())]
        arrays[key] = pa.StructArray.from_arrays(fields, names=["bytes", "path"])
        arrays[key + START_SUFFIX] = pa.array(np.repeat([part.start for part in parts], lengths))
    for key, values in recordings.columns.numbers.items():
        array = pa.array(values.reshape(-1))
        for size in reversed(values.shape[1:]):
            array = pa.FixedSizeListArray.from_arrays(array, size)
        arrays[key] = array
    for key, text in recordings.columns.texts.items():
        arrays[key] = pa.array(text.texts, pa.string()).take(pa.array(text.codes))
    tasks = [recordings.tasks[index] for index in recordings.columns.numbers["task_index"].tolist()]
    arrays[TASK_KEY] = pa.array(tasks, pa.string())
    return {key: arrays[key] for key in features}


def _encoded(pixels: np.ndarray, encoding: str) -> bytes:
    """Encode uint8 `[3, h, w]` without loss."""
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, encoding)
    return file.getvalue()


def _fingerprint(recordings: Recordings, videos: Videos) -> str:
    """Return what the cache knows a table by; when files were written counts, whatever they hold."""
    digest = hashlib.sha256(f"{_LAYOUT} {recordings.fingerprint} {videos}".encode())
    digest.update(repr([*recordings.cameras, *recordings.columns.numbers]).encode())
    for name in sorted({episode.data_path for episode in recordings.episodes}):
        digest.update(f"{name} {(recordings.root / name).stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:32]
