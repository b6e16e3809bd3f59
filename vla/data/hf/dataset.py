"""`HuggingFaceDataset`: a table of `datasets` read as LeRobot datasets are.

From table to sample: `source` finds the table, `columns` describes and reads its columns, `order` sorts its
rows into episodes, `images` decodes on demand. What comes after is the same for every dataset: checks,
windows, statistics, splits, loaders.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla.data.dataset import LeRobotDataset
from vla.data.frames import FrameStore
from vla.data.hf.clock import frame_rate, seconds_cut_off, timestamps
from vla.data.hf.columns import TableColumns
from vla.data.hf.content import table_fingerprint
from vla.data.hf.export import START_SUFFIX, Videos
from vla.data.hf.images import TableImages, video_spans
from vla.data.hf.options import TableOptions
from vla.data.hf.order import FRAME_KEY, TIMESTAMP_KEY, EpisodeRows, order_rows
from vla.data.hf.source import open_table
from vla.data.lerobot.columns import Columns, TextColumn, beyond
from vla.data.lerobot.episodes import Episode, VideoSpan
from vla.data.lerobot.schema import DatasetInfo, Feature
from vla.data.lerobot.verify import check_parts, check_videos
from vla.data.notices import say_once
from vla.data.selection import (
    check_horizon,
    choose_cameras,
    select_episodes,
    window_of,
    with_own_arguments,
    without_depth,
)
from vla.data.video import OPEN_VIDEOS
from vla.errors import ConfigError, DatasetError
from vla.types import ACTION_KEY, STATE_KEY, Window, as_texts, columns_of, name_of

if TYPE_CHECKING:
    import datasets

VERSION = "datasets"
"""What stands in `info.version`."""

_EPISODE_KEY, _INDEX_KEY, _TASK_KEY = "episode_index", "index", "task_index"
_BASE = (FRAME_KEY, TIMESTAMP_KEY, _EPISODE_KEY, _INDEX_KEY, _TASK_KEY)
"""Columns that every dataset has here; they are made from those that the table's options name."""

_LOOKED_AT = 32  # episodes whose first images are decoded when a table is opened


class HuggingFaceDataset(LeRobotDataset):
    """A table of `datasets`, one frame a row: from disk, from the hub, or as it is open already.

    Its items, checks and methods are those of `LeRobotDataset`. Cameras, state and actions are columns that
    are named as there; `options` names those that say which frame of which episode a row is. Columns in
    columns are called as `Dataset.flatten` does: `observation.state` for `state` in `observation`. An episode
    is numbered as its column says where that holds whole numbers, and else in the order in which episodes
    first occur; they come in the order of their numbers. Frames of a `Video` column are decoded by PyAV at
    `<camera>.from_timestamp` plus the row's timestamp; where there is no such column, each episode must have
    a video of its own.

    Args:
        table: Folder or file of this machine, or hub id, with or without `hf:` before it; or a
            `datasets.Dataset`.
        options: How to read it; by default columns are called as `LeRobotDataset.to_datasets` calls them.
        action_horizon: Steps in an action chunk. This and all that follow: see `LeRobotDataset`.
        window: Which frames make up a sample.
        episodes: Episodes to use.
        cameras: Columns of images or videos to decode; all by default.
        action_key: Column of the actions; several are joined in the order given.
        state_key: The same of the state.
        revision: Branch, tag or commit of a hub dataset.
        tolerance_s: Largest difference between a video frame's time and its row's, in seconds.
        cache_frames: Keep decoded frames in memory.
        open_videos: Video files that each process keeps open.

    Attributes:
        fingerprint: Hash of the numbers and texts of the selected episodes, and of their images and videos as
            they are stored: the same wherever the table is, and in whichever format. Of a camera of more
            than 1 GiB, each image or video counts with a part of its bytes (`vla.data.hf.content`).

    Raises:
        DatasetError: The table is missing, damaged or empty; a column is missing or of a kind that does not
            fit; a frame is missing or comes twice; a value is not finite; the timestamps do not rise by 1 /
            fps, or nothing says how many frames a second there are; no episode is as long as the horizon.
        ConfigError: See `LeRobotDataset`.
    """

    @with_own_arguments
    def __init__(
        self,
        table: "str | Path | datasets.Dataset",
        options: TableOptions | None = None,
        *,
        action_horizon: int | None = None,
        window: Window | None = None,
        episodes: Sequence[int] | None = None,
        cameras: Sequence[str] | None = None,
        action_key: str | Sequence[str] = ACTION_KEY,
        state_key: str | Sequence[str] = STATE_KEY,
        revision: str | None = None,
        tolerance_s: float | None = None,
        cache_frames: bool = False,
        open_videos: int = OPEN_VIDEOS,
    ) -> None:
        cameras = None if cameras is None else as_texts(cameras, "cameras")
        self.window = window_of(action_horizon, window)
        self.action_horizon = self.window.horizon
        self.options = _checked_options(options)
        self._table = open_table(table, self.options, revision)
        self.root, self.revision, self._stream = self._table.root, self._table.revision, None
        self.action_key, self.state_key = name_of(action_key, ACTION_KEY), name_of(state_key, STATE_KEY)
        columns = TableColumns(self._table)
        ordered = order_rows(columns, self.options.columns)
        tasks = _read_tasks(columns, self.options.columns.task, ordered)
        self.info = _describe(columns, ordered, tasks)
        self.tasks = tasks.texts
        _check_one_frame(columns, columns_of(state_key), columns_of(action_key))
        self._choose_vectors(state_key, action_key)
        every = _episodes(columns, ordered, tasks, cameras)
        self.episodes = select_episodes(every, episodes, self._table.name)
        self.cameras = _choose(columns, self.info, cameras, self.episodes)
        check_horizon(self.action_horizon, self.episodes, self._table.name)
        self._read(columns, ordered, tasks)
        with _naming(self._table.name):
            times = self._check_times(tolerance_s)
            check_parts(every, self.cameras, self.info.fps, f"the column '{{camera}}{START_SUFFIX}'")
            parts = self._video_parts(times)
            found = check_videos(self.root, parts, tolerance_s)
            self.info, self.cameras = without_depth(
                Path(self._table.name), self.info, self.cameras, found, cameras is not None
            )
        self._set_window(self.window)
        seen = {camera: self.info.features[camera] for camera in self.cameras}
        self._images = TableImages(columns, {k: f for k, f in seen.items() if f.dtype == "image"})
        self._decode_some()
        self.fingerprint, self._cache_frames = table_fingerprint(self, self._columns, columns), cache_frames
        self._frames = FrameStore(
            self.root,
            self.episodes,
            seen,
            times,
            [self._columns.file_rows[s] for s in self.episode_slices],
            tolerance_s,
            cache_frames,
            open_videos,
            images=self._images,
        )

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self._table.name

    @with_own_arguments
    def to_datasets(
        self, *, streaming: bool = False, videos: Videos | None = None
    ) -> "datasets.Dataset | datasets.IterableDataset":
        """Return the table's rows of the selected episodes, in their order; its columns stay as they are.

        Args:
            streaming: Return an `IterableDataset`.
            videos: Is not for tables: their videos and images stay as they are.

        Raises:
            ConfigError: `videos` is given.
        """
        import datasets

        if videos is not None:
            raise ConfigError(
                f"videos={videos!r} is for LeRobot datasets; the columns of {self._table.name} "
                "stay as they are."
            )
        chosen = self._table.rows.select(self._columns.file_rows)
        for key, feature in chosen.features.items():
            if isinstance(feature, datasets.Image | datasets.Video):
                chosen = chosen.cast_column(key, type(feature)())
        return chosen.to_iterable_dataset() if streaming else chosen

    def _read(self, columns: TableColumns, ordered: Sequence[EpisodeRows], tasks: TextColumn) -> None:
        """Read the columns of the selected episodes, and settle how many frames a second there are."""
        starts = np.cumsum([0, *(len(episode.rows) for episode in ordered)])
        places = {episode.index: place for place, episode in enumerate(ordered)}
        chosen = [places[episode.index] for episode in self.episodes]
        rows = np.concatenate([ordered[place].rows for place in chosen])
        index = np.concatenate([np.arange(starts[place], starts[place + 1]) for place in chosen])
        lengths = [episode.length for episode in self.episodes]
        ends = np.cumsum(lengths).tolist()
        spans = [slice(end - n, end) for n, end in zip(lengths, ends, strict=True)]
        frames = np.concatenate([np.arange(length) for length in lengths])
        stamps = timestamps(columns, self.options.columns.timestamp, rows, spans)
        fps = self.options.fps or frame_rate(columns, stamps, spans)
        self.info = replace(self.info, fps=fps)
        left_out = {key: reason for key, reason in columns.left_out.items() if key not in _BASE}
        vectors = (*self.state_columns, *self.action_columns)
        numbers, texts = {}, {}
        for key, feature in self.info.features.items():
            if feature.is_image or key in _BASE:
                continue
            if feature.dtype == "string":
                texts[key] = columns.texts(key, rows)
                continue
            try:
                values = columns.numbers(key, rows)
                _check_finite(self._table.name, feature, values, self.episodes, spans)
            except DatasetError as error:
                if key in vectors:
                    raise
                left_out[key] = str(error)
            else:
                numbers[key] = values
        if any(episode.videos for episode in self.episodes):
            missing = seconds_cut_off(columns, self.options.columns, ordered, fps, stamps is not None)
            self.episodes = [_later(*both) for both in zip(self.episodes, missing[chosen], strict=True)]
        for key, reason in left_out.items():
            say_once(f"{self._table.name}: the column '{key}' is left out: {reason}")
        numbers[TIMESTAMP_KEY] = (frames / fps).astype(np.float32) if stamps is None else stamps
        numbers[FRAME_KEY], numbers[_INDEX_KEY] = frames, index
        numbers[_EPISODE_KEY] = np.repeat([episode.index for episode in self.episodes], lengths)
        numbers[_TASK_KEY] = tasks.codes[index].astype(np.int64)
        self._task_column = self.options.columns.task
        self._take_columns(Columns(numbers, texts, rows, left_out))

    def _decode_some(self) -> None:
        """Raise `DatasetError` where the first image of an episode is damaged; of many episodes, of some."""
        step = -(-len(self.episode_slices) // _LOOKED_AT)
        for camera in self.cameras:
            if self.info.features[camera].dtype == "image":
                for span in self.episode_slices[::step]:
                    self._images.read(self.root, int(self._columns.file_rows[span.start]), camera)


def _checked_options(options: TableOptions | None) -> TableOptions:
    """Return the options, or the default ones; raises `ConfigError` where they are something else."""
    if options is not None and not isinstance(options, TableOptions):
        raise ConfigError(
            f"options must be TableOptions(columns=ColumnNames(task=...), ...), got {options!r}."
        )
    return options or TableOptions()


def _check_one_frame(columns: TableColumns, *vectors: tuple[str, ...]) -> None:
    """Raise `DatasetError` where a row holds several states or actions, as in tables of whole episodes."""
    for key in (key for keys in vectors for key in keys):
        shape = columns.features[key].shape if key in columns.features else ()
        if len(shape) > 1:
            raise DatasetError(
                f"{columns.table.name}: '{key}' holds {' x '.join(map(str, shape))} numbers in each row, and "
                "a row must be one frame with one vector: unfold rows that are whole episodes, with "
                "Dataset.map(batched=True)."
            )
        if key in columns.left_out:
            reason = columns.left_out[key]
            raise DatasetError(f"{columns.table.name}: '{key}' cannot be used: {reason}")


def _read_tasks(columns: TableColumns, key: str, ordered: Sequence[EpisodeRows]) -> TextColumn:
    """Return the instruction of every frame, numbered in the order in which they first occur."""
    if str(getattr(columns.table.rows.features.get(key), "dtype", "")).endswith("binary"):
        raise DatasetError(
            f"{columns.table.name}: the column '{key}' cannot be the task: it holds bytes, and instructions "
            "are text or class labels. Decode them, with Dataset.map."
        )
    columns.check_there(key, "the task (data.columns.task, --column task=NAME)")
    name = columns.table.name
    if columns.features[key].dtype != "string":
        raise DatasetError(
            f"{name}: the column '{key}' cannot be the task: its type is "
            f"{columns.table.rows.features[key]}, and "
            "instructions are text or class labels."
        )
    found = columns.texts(key, np.concatenate([episode.rows for episode in ordered]))
    used, first = np.unique(found.codes, return_index=True)
    used = used[np.argsort(first)]
    place = np.zeros(len(found.texts), dtype=np.int32)
    place[used] = np.arange(len(used))
    texts = tuple(found.texts[code] for code in used.tolist())
    return TextColumn(texts, place[found.codes])


def _describe(columns: TableColumns, ordered: Sequence[EpisodeRows], tasks: TextColumn) -> DatasetInfo:
    starts = {f"{key}{START_SUFFIX}" for key, feature in columns.features.items() if feature.dtype == "video"}
    features = {k: feature for k, feature in columns.features.items() if k not in {*_BASE, *starts}}
    features[TIMESTAMP_KEY] = Feature(TIMESTAMP_KEY, "float32", (1,))
    for key in (FRAME_KEY, _EPISODE_KEY, _INDEX_KEY, _TASK_KEY):
        features[key] = Feature(key, "int64", (1,))
    return DatasetInfo(
        version=VERSION,
        fps=0.0,
        robot_type=None,
        features=features,
        total_episodes=len(ordered),
        total_frames=sum(len(episode.rows) for episode in ordered),
        chunks_size=len(ordered),
        data_path="",
        video_path="",
        tasks=dict(enumerate(tasks.texts)),
    )


def _episodes(
    columns: TableColumns,
    ordered: Sequence[EpisodeRows],
    tasks: TextColumn,
    cameras: Sequence[str] | None,
) -> list[Episode]:
    videos: list[dict[str, VideoSpan]] = [{} for _ in ordered]
    for key, feature in columns.features.items():
        if feature.dtype == "video" and feature.depth is None and (cameras is None or key in cameras):
            for own, span in zip(videos, video_spans(columns, key, ordered), strict=True):
                own[key] = span
    episodes, start = [], 0
    for episode, own in zip(ordered, videos, strict=True):
        stop = start + len(episode.rows)
        said = tuple(tasks.texts[code] for code in dict.fromkeys(tasks.codes[start:stop].tolist()))
        episodes.append(Episode(episode.index, len(episode.rows), said, "", own))
        start = stop
    return episodes


def _choose(
    columns: TableColumns, info: DatasetInfo, wanted: Sequence[str] | None, episodes: Sequence[Episode]
) -> tuple[str, ...]:
    if wanted is None and columns.broken:
        key = columns.broken[0]
        raise DatasetError(
            f"{columns.table.name}: the images of '{key}' cannot be read: {columns.left_out[key]} Name the "
            "cameras to be used, without it (data.cameras)."
        )
    for key in wanted or ():
        if key in columns.left_out:
            raise DatasetError(f"{columns.table.name}: '{key}' cannot be a camera: {columns.left_out[key]}")
        if key in columns.features and not columns.features[key].is_image:
            raise DatasetError(f"{columns.table.name}: '{key}' cannot be a camera: {columns.no_image(key)}")
    if wanted is None:
        for key in columns.like_images():
            say_once(f"{columns.table.name}: '{key}' is not a camera: {columns.no_image(key)}")
    return choose_cameras(Path(columns.table.name), info, wanted, episodes)


def _later(episode: Episode, seconds: float) -> Episode:
    """Return an episode that begins later in its videos."""
    videos = {key: replace(span, start=span.start + float(seconds)) for key, span in episode.videos.items()}
    return replace(episode, videos=videos)


def _check_finite(
    name: str, feature: Feature, values: np.ndarray, episodes: Sequence[Episode], spans: Sequence[slice]
) -> None:
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    flat = values.reshape(len(values), -1)
    row, dimension = np.argwhere(~np.isfinite(flat))[0].tolist()
    place = next(number for number, span in enumerate(spans) if span.start <= row < span.stop)
    raise DatasetError(
        f"{name}: '{feature.key}' of episode {episodes[place].index}, frame {row - spans[place].start}"
        f"{feature.dimension(dimension)} is {flat[row, dimension]}{beyond(values)}. "
        "Repair or leave out this episode."
    )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Let errors about meta/info.json name the table, which has no such file."""
    try:
        yield
    except DatasetError as error:
        said = str(error).replace("in meta/info.json", f"of {name}").replace("meta/info.json", name)
        raise DatasetError(said) from error
