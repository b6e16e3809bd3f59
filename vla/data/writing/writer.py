"""Record episodes as a LeRobot v3.0 dataset: parquet rows, mp4 video, metadata.

The dataset is built in a temporary folder next to its destination and renamed when it is complete, so
that a half-written dataset never has the destination's name.
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla.data.lerobot.layout_v30 import (
    CHUNKS_SIZE,
    DATA_PATH,
    DEFAULT_COLUMNS,
    SCALARS,
    VIDEO_PATH,
    make_features,
    make_info,
    rows_table,
    tasks_table,
)
from vla.data.selection import with_own_arguments
from vla.data.writing import checks
from vla.data.writing.encoder import Codec, VideoEncoder, whole_rate
from vla.data.writing.episode_stats import PixelHistogram, merged, summarize, summarize_columns
from vla.data.writing.partial import OPEN, make_folder, publish, publish_all, write_metadata
from vla.data.writing.unfinished import (
    Unfinished,
    check_open,
    drop_unsaved,
    left_of,
    locked,
    remember,
    rescue,
)
from vla.errors import ConfigError, DatasetError
from vla.paths import kept
from vla.types import ACTION_KEY, STATE_KEY

_log = logging.getLogger(__name__)

_NOT_WRITTEN = (OSError, av.FFmpegError, pa.ArrowException, ValueError)


class LeRobotWriter(Unfinished):
    """Writes a v3.0 dataset that LeRobot's own reader accepts.

    Frames of the episode being recorded are held in memory until `save_episode`, so that an episode can
    be discarded. As a context manager it finalises on a clean exit. Used otherwise, `finalize` completes the
    dataset; where it was forgotten, that is done when the program ends, with a warning.

    What was saved is readable by the destination's name from `finalize` on. `flush` makes it readable in the
    unfinished folder before: for long recordings, which a power cut or SIGKILL may end.

    A recording is costly, so that nothing that was saved is lost: after Ctrl-C or an error, inside the `with`
    or in a method, the dataset is completed with the episodes that were saved, without the one that was being
    recorded, and a warning says so. Without a saved episode nothing is left behind. Where it cannot be
    completed, its folder is left as it is, and named.

    Args:
        folder: Destination; must not exist yet. It stays the same when the program changes its folder.
        fps: Frames per second, whole.
        cameras: Dataset key to frame size (height, width), `{"observation.images.top": (224, 224)}`.
        state_names: A name per state dimension; for a state in several columns the names by column,
            `{"observation.state.arm": ["shoulder", "elbow"], "observation.state.gripper": ["opening"]}`.
        action_names: The same of the actions.
        robot_type: Written to info.json.
        extra_features: Further columns with one value a frame, name to `"float32"`, `"int64"`, `"bool"` or
            `"string"`: `{"response": "string"}`.
        codec: `"h264"`, `"av1"` or `"lossless"` (see `VideoEncoder`).
        data_file_mb: A parquet file that has reached this size is followed by a new one.
        video_file_mb: The same for video files.

    Raises:
        DatasetError: The folder exists already.
        ConfigError: An argument of another kind, an unknown dtype, an unknown codec, an odd frame size, or a
            name that is used twice, is taken by every dataset or cannot be that of a folder.
    """

    @with_own_arguments
    def __init__(
        self,
        folder: Path | str,
        fps: int,
        *,
        cameras: Mapping[str, tuple[int, int]],
        state_names: Sequence[str] | Mapping[str, Sequence[str]],
        action_names: Sequence[str] | Mapping[str, Sequence[str]],
        robot_type: str = "unknown",
        extra_features: Mapping[str, str] | None = None,
        codec: Codec = "h264",
        data_file_mb: float = 100,
        video_file_mb: float = 200,
    ) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise ConfigError(f"The folder of a recording must be a path, got {folder!r}.")
        self.folder = kept(folder)
        if self.folder.exists():
            raise DatasetError(f"{self.folder} exists already: give another folder, or remove it first.")
        if not isinstance(robot_type, str):
            raise ConfigError(f"robot_type must be text, got {robot_type!r}.")
        self.fps = whole_rate(fps)
        self.robot_type = robot_type
        self.cameras = checks.camera_sizes(cameras, codec, self.fps)
        self.codec: Codec = codec
        self._extra = checks.extra_features(extra_features)
        states = checks.dimension_names(STATE_KEY, state_names, "state_names")
        actions = checks.dimension_names(ACTION_KEY, action_names, "action_names")
        self._names = states | actions
        checks.feature_names(
            [*self.cameras, *states, *actions, *self._extra],
            [*self.cameras, *self._names, STATE_KEY, ACTION_KEY],
        )
        self._limits_mb = (
            checks.size_limit(data_file_mb, "data_file_mb"),
            checks.size_limit(video_file_mb, "video_file_mb"),
        )
        self._schema = self._make_schema()
        self._tasks: dict[str, int] = {}
        self._episode_rows: list[dict[str, Any]] = []
        self._frames: list[dict[str, Any]] = []
        self._pixels = {key: PixelHistogram() for key in self.cameras}
        self._data: tuple[Path, pq.ParquetWriter] | None = None
        self._videos: dict[str, VideoEncoder] = {}
        self._files: Counter[str] = Counter()  # how many were begun: of each camera, and of rows
        try:
            self._temporary = make_folder(self.folder)
        except OSError as error:
            raise DatasetError(f"{self.folder} cannot be written: {error}.") from error
        self._closed: Literal["finalised", "abandoned", "failed"] | None = None
        self._is_torn = False  # whether the files may hold a part of an episode that is not a saved one
        remember(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._closed != "abandoned":
                self.finalize()
        finally:
            rescue(self)

    @locked
    def add_frame(self, frame: Mapping[str, Any], *given: Any, **named: Any) -> None:
        """Add one frame to the episode being recorded.

        Args:
            frame: Every camera key (uint8 `[h, w, 3]`), `observation.state` `[d]` and `action` `[m]`, or the
                columns that they are recorded in, and every extra feature.
            *given: Is not for frames: the task is that of `save_episode(task)`.
            **named: The same.

        Raises:
            DatasetError: There is more than the frame, a key is missing or unknown, a value is not finite or
                does not have the declared dtype, or the recording is closed.
            ShapeError: An image, a state or an action has another shape or dtype than declared.
        """
        check_open(self)
        frame = checks.frame(frame, {*self.cameras, *self._names, *self._extra}, *given, **named)
        where = f"episode {len(self._episode_rows)}, frame {len(self._frames)}"
        row: dict[str, Any] = {
            key: checks.scalar(frame[key], dtype, f"{key} of {where}") for key, dtype in self._extra.items()
        }
        row |= {key: checks.image(frame[key], size, key) for key, size in self.cameras.items()}
        row |= {key: checks.vector(frame[key], len(own), key, where) for key, own in self._names.items()}
        self._frames.append(row)

    @locked
    def discard_episode(self) -> None:
        """Forget the frames added since the last `save_episode`.

        Raises:
            DatasetError: The recording is closed.
        """
        check_open(self)
        self._frames = []

    @locked
    def save_episode(self, task: str | None = None) -> int:
        """Write the recorded frames as one episode and return its index.

        Args:
            task: The instruction given to the robot; it must be given.

        Raises:
            DatasetError: No frame was added, the task is missing, is not text or is empty, the recording is
                closed, or the data could not be written: the dataset is then completed with the episodes
                before.
        """
        check_open(self)
        if not self._frames:
            raise DatasetError("The episode holds no frames: add_frame comes before save_episode.")
        index = len(self._episode_rows)
        task = checks.task(task, f"The task of episode {index}")
        is_done = False
        try:
            self._episode_rows.append(self._write_episode(index, task))
            is_done = True
        except (OSError, av.FFmpegError) as error:
            raise DatasetError(f"Episode {index} could not be written to {self.folder}: {error}.") from error
        finally:
            if not is_done:  # by whatever: half an episode may be in the files
                self._is_torn = True
                rescue(self, "failed")
        self._frames = []
        return index

    @locked
    def flush(self) -> Path:
        """Complete the files of the episodes saved so far, and write their metadata.

        From then on the folder that is returned is a dataset that can be opened, whatever becomes of the
        program: it lies next to the destination, its name is hidden, and `finalize` moves it. Later episodes
        begin new files. Quantiles over all frames are a mean of the episodes' until `finalize`.

        Raises:
            DatasetError: No episode was saved, the recording is closed, or the data could not be written: the
                dataset is then completed with the episodes that were saved, where that is possible.
        """
        check_open(self)
        if not self._episode_rows:
            raise DatasetError(f"No episode was saved yet, so that {self.folder} has nothing to flush.")
        is_done = False
        try:
            self._close_files(is_interim=True)
            self._write_metadata(is_interim=True)
            is_done = True
        except _NOT_WRITTEN as error:
            raise DatasetError(f"{self.folder} could not be written: {str(error).rstrip('.')}.") from error
        finally:
            if not is_done:
                rescue(self, "failed")
        return self._temporary

    @locked
    def finalize(self) -> None:
        """Complete the files and move the dataset to its destination. Idempotent.

        Raises:
            DatasetError: No episode was saved (nothing is left behind then); frames were added but not saved
                (the recording stays open); the destination was created meanwhile, or the data could not be
                written (what there is of them is left, and named); or the recording was given up before.
        """
        if self._closed == "finalised":
            return
        check_open(self)
        if not self._episode_rows:
            self._close("failed")
            raise DatasetError(f"No episode was saved, so {self.folder} is not written.")
        if self._frames:
            raise DatasetError(
                f"{len(self._frames)} frames were added after the last save_episode: save_episode(task) "
                "keeps them, discard_episode() drops them."
            )
        try:
            self._complete()
        except _NOT_WRITTEN as error:
            self._closed = "failed"
            said = str(error).rstrip(".")
            raise DatasetError(f"{self.folder} could not be written: {said}. {left_of(self)}") from error
        _log.info(
            "Wrote %d episodes, %d frames to %s", len(self._episode_rows), self._num_frames, self.folder
        )

    @locked
    def abort(self) -> None:
        """Remove everything written so far. Idempotent; does nothing after `finalize`."""
        if self._closed is None:
            self._close("abandoned")

    def _complete(self) -> None:
        self._close_files()
        if self._is_torn:
            drop_unsaved(self._temporary / "data", len(self._episode_rows))
        self._write_metadata()
        publish_all(self._temporary, self.folder)
        self._closed = "finalised"

    @property
    def _num_frames(self) -> int:
        """Frames of the saved episodes."""
        return self._episode_rows[-1]["dataset_to_index"] if self._episode_rows else 0

    def _close(self, how: Literal["abandoned", "failed"]) -> None:
        """Remove everything written so far."""
        self._closed = how
        self._frames = []
        try:
            self._close_files()
        except (OSError, av.FFmpegError, ValueError) as error:
            _log.debug("While removing %s: %s", self._temporary, error)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _make_schema(self) -> pa.Schema:
        fields = [(key, pa.list_(pa.float32(), len(names))) for key, names in self._names.items()]
        scalars = {**DEFAULT_COLUMNS, **self._extra}
        return pa.schema(fields + [(key, SCALARS[dtype]) for key, dtype in scalars.items()])

    def _write_episode(self, index: int, task: str) -> dict[str, Any]:
        length, frames = len(self._frames), self._frames
        task_index = self._tasks.setdefault(task, len(self._tasks))
        columns: dict[str, Any] = {key: np.stack([f[key] for f in frames]) for key in self._names}
        columns |= {
            # NumPy's own texts end before a trailing NUL.
            key: np.array([f[key] for f in frames], dtype=object if dtype == "string" else None)
            for key, dtype in self._extra.items()
        }
        columns |= {
            "timestamp": (np.arange(length) / self.fps).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, index),
            "index": self._num_frames + np.arange(length),
            "task_index": np.full(length, task_index),
        }
        chunk, file = self._write_rows(columns)
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [task],
            "length": length,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self._num_frames,
            "dataset_to_index": self._num_frames + length,
        }
        seen = {key: PixelHistogram() for key in self.cameras}
        for key, histogram in seen.items():
            pixels = [f[key] for f in frames]
            row |= self._write_video(key, pixels)
            histogram.add_episode(pixels)
        for key, histogram in seen.items():  # of whole episodes alone
            self._pixels[key].merge(histogram)
        stats = {key: histogram.summary() for key, histogram in seen.items()}
        stats |= {key: summarize(column) for key, column in columns.items() if column.dtype.kind != "O"}
        row |= {f"stats/{key}/{name}": v for key, summary in stats.items() for name, v in summary.items()}
        return {**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}

    def _write_rows(self, columns: Mapping[str, np.ndarray]) -> tuple[int, int]:
        if self._data is not None and self._data[0].stat().st_size >= self._limits_mb[0] * 2**20:
            self._data[1].close()
            self._data = None
        if self._data is None:
            path = self._begin("data", DATA_PATH)
            self._data = path, pq.ParquetWriter(path, self._schema)
        # One row group per episode: a reader of few episodes then skips the others' bytes.
        self._data[1].write_table(rows_table(self._schema, columns))
        return self._number("data")

    def _begin(self, of: str, template: str) -> Path:
        """Return the path of a new file of rows or of a camera."""
        self._files[of] += 1
        chunk, file = self._number(of)
        path = self._temporary / OPEN / template.format(video_key=of, chunk_index=chunk, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _number(self, of: str) -> tuple[int, int]:
        """Return the chunk and file index of the file that was begun last."""
        return divmod(self._files[of] - 1, CHUNKS_SIZE)

    def _write_video(self, key: str, pixels: Sequence[np.ndarray]) -> dict[str, Any]:
        if key in self._videos and self._videos[key].num_bytes >= self._limits_mb[1] * 2**20:
            self._videos.pop(key).close()
        if key not in self._videos:
            path = self._begin(key, VIDEO_PATH)
            self._videos[key] = VideoEncoder(path, self.fps, *self.cameras[key], codec=self.codec)
        chunk, file = self._number(key)
        encoder = self._videos[key]
        start = encoder.num_frames
        encoder.append(pixels)
        return {
            f"videos/{key}/chunk_index": chunk,
            f"videos/{key}/file_index": file,
            f"videos/{key}/from_timestamp": start / self.fps,
            f"videos/{key}/to_timestamp": encoder.num_frames / self.fps,
        }

    def _close_files(self, is_interim: bool = False) -> None:
        if self._data is not None:
            self._data[1].close()
            self._data = None
        for key in list(self._videos):
            self._videos.pop(key).close()
        publish(self._temporary, to_disk=is_interim)

    def _write_metadata(self, is_interim: bool = False) -> None:
        used = {task for row in self._episode_rows for task in row["tasks"]}
        self._tasks = {task: index for task, index in self._tasks.items() if task in used}
        tasks = tasks_table(self._tasks)
        features = make_features(self.cameras, self._names, self._extra, self.fps, self.codec)
        info = make_info(
            features,
            fps=self.fps,
            robot_type=self.robot_type,
            totals=(len(self._episode_rows), self._num_frames, len(self._tasks)),
            limits_mb=self._limits_mb,
        )
        stats = {key: histogram.summary() for key, histogram in self._pixels.items()}
        if is_interim:
            stats |= merged(self._episode_rows, self._schema)
        else:
            stats |= summarize_columns(self._temporary / "data", self._schema, self._names, self._num_frames)
        write_metadata(self._temporary, self._episode_rows, tasks, info=info, stats=stats, to_disk=is_interim)
