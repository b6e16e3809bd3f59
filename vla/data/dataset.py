"""`LeRobotDataset`: a frame and the action chunk that follows it, by number.

From file to sample: `hub` finds the folder, `schema` reads what it holds, `storage_v21` / `storage_v30`
say where each episode lives, `columns` reads and checks the numbers once, `frames` decodes images on
demand, `windows` says which rows make up a chunk and a past.
"""

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vla.data.frames import FrameStore
from vla.data.hf.export import Recordings, Videos, to_table
from vla.data.hub import DatasetLocation, locate
from vla.data.lerobot import storage_v21, storage_v30
from vla.data.lerobot.columns import Columns, TextColumn, read_columns
from vla.data.lerobot.episodes import Episode
from vla.data.lerobot.schema import INFO_PATH, DatasetInfo, read_info
from vla.data.lerobot.vectors import as_vectors, frame_times, locked
from vla.data.lerobot.verify import (
    CheckedVideos,
    VideoPart,
    check_images,
    check_parts,
    check_times,
    check_videos,
)
from vla.data.loading.file_order import Window as ShuffleWindow
from vla.data.selection import (
    check_horizon,
    check_item_keys,
    choose_cameras,
    frame_number,
    hidden_columns,
    made_keys,
    place_of,
    say_no_task,
    say_other_tasks,
    select_episodes,
    tasks_of,
    window_of,
    with_own_arguments,
    without_depth,
)
from vla.data.stream import stream_of
from vla.data.video import OPEN_VIDEOS
from vla.data.windows import window
from vla.errors import ConfigError, DatasetError, did_you_mean
from vla.types import ACTION_KEY, STATE_KEY, TASK_KEY, ProgressCallback, Window, as_count, columns_of, name_of

if TYPE_CHECKING:
    import datasets

_STORAGES = {"v2.1": storage_v21, "v3.0": storage_v30}


class LeRobotDataset:
    """A LeRobot dataset (v2.1 or v3.0), from a folder or from the Hugging Face hub.

    Map-style: `dataset[i]` is a dictionary with LeRobot's own keys: every camera as uint8 `[3, h, w]`, the
    state `[d]` and the action chunk `[a, m]` as float32, `"action_is_pad"` bool `[a]`, `"task"` as text, and
    every other column as it is (scalars as 0-dim tensors, strings as `str`). Everything but the images is
    in memory; opening checks all of it, so that a run that starts does not stumble over its data: the
    numbers, and what the metadata say against the files (`vla.data.lerobot.verify`). It can be pickled, used
    in forked or spawned workers, and from several threads.

    With a `window` that reads several frames, the state is `[o, d]` and images are `[o, 3, h, w]`, oldest
    first, and `"<key>_is_pad"` bool `[o]` is True where the offset lies before the episode's start (the first
    frame is repeated there). Keys of which one frame is read stay as they are, without a mask.

    Args:
        path_or_repo_id: Folder, or hub id `"owner/name"` (downloads what the selection needs).
        action_horizon: Steps in an action chunk; past the episode's end the last action is repeated. May be
            left out where `window` is given.
        window: Which frames make up a sample, in steps of the dataset; single cameras by their keys here
            (`Window.rekeyed`). By default the present frame, and a chunk that begins with it.
        episodes: Episode indices to use, in this order; all by default.
        cameras: Camera keys to decode; all by default that see colours (depth is left out, with a warning).
        action_key: Column of the actions; several are joined in the order given.
        state_key: The same of the state.
        revision: Branch, tag or commit of a hub dataset.
        tolerance_s: Largest difference between a video frame's time and its row's timestamp, in seconds;
            see `video.DEFAULT_TOLERANCE_S`.
        cache_frames: Keep decoded frames in memory (uint8), so that each is decoded once; `preload` decodes
            all of them at once.
        open_videos: Video files that each process keeps open, the least recently used one closed for the
            next.
        streaming: For a hub dataset: download each video file when a frame of it is first asked for, and only
            metadata and tables now. Read in the order of `shuffle_window`, or in the dataset's own: a plain
            shuffle asks for all files at once. A folder has its files already.
        streaming_disk_gb: Disk space for streamed videos, in GB (10^9 bytes), the least recently opened ones
            removed for the next; None keeps all, in the hub's cache.

    Attributes:
        info: What the whole dataset holds.
        episodes: The selected episodes.
        episode_slices: Per selected episode, its frames in this dataset.
        cameras: Keys of the cameras that are decoded.
        tasks: The whole dataset's instructions.
        left_out: Why a column of info.json cannot be read, and is not in the items, by its key.
        state_key: Key of the state in an item; `"observation.state"` where several columns are joined.
        action_key: Key of the actions in an item; `"action"` where several columns are joined.
        state_columns: The columns that hold the state.
        action_columns: The columns that hold the actions.
        state_feature: Width and names of the state, joined.
        action_feature: Width and names of an action, joined.
        state_dim: Width of the state.
        action_dim: Width of an action.
        action_horizon: Steps in an action chunk.
        window: Which frames make up a sample.
        fingerprint: Hash of the metadata, the selection and the sizes of the files it lives in.
        revision: Commit of a hub dataset, None for a folder. Opened again at it, the dataset is the same,
            whatever was pushed since.

    Raises:
        DatasetError: The dataset is missing, incomplete, corrupt, empty, of an unknown version, holds values
            that are not finite, lacks a camera, episode or column that was asked for, or has no episode as
            long as the horizon. While streaming, an item raises it where its video cannot be downloaded.
        ConfigError: The horizon, the number of open videos or the disk space is not positive; neither horizon
            nor window is given, or they differ; or the window names a camera that the dataset lacks.
    """

    _task_column: str | None = None  # the column that is the instruction, where it is one of text

    @with_own_arguments
    def __init__(
        self,
        path_or_repo_id: str | Path,
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
        streaming: bool = False,
        streaming_disk_gb: float | None = None,
    ) -> None:
        self.window = window_of(action_horizon, window)
        self.action_horizon = self.window.horizon
        source = locate(path_or_repo_id, revision)
        self.root, self.revision = source.root, source.revision
        self._stream = stream_of(source, streaming, streaming_disk_gb)
        self.action_key, self.state_key = name_of(action_key, ACTION_KEY), name_of(state_key, STATE_KEY)
        info = read_info(self.root)
        storage = _STORAGES[info.version]
        self.info: DatasetInfo = replace(info, tasks=storage.read_tasks(self.root))
        self._choose_vectors(state_key, action_key)
        self.tasks = tuple(self.info.tasks[index] for index in sorted(self.info.tasks))
        every = storage.read_episodes(self.root, self.info)
        self.episodes = select_episodes(every, episodes, str(path_or_repo_id))
        self.cameras = choose_cameras(self.root, self.info, cameras, self.episodes)
        check_horizon(self.action_horizon, self.episodes, str(self.root))
        self._fetch_files(source)
        times = self._load_rows(every, tolerance_s)
        check_parts(every, self.cameras, self.info.fps)
        parts = self._video_parts(times)
        self._check_files(parts, tolerance_s, asked_for=cameras is not None)
        self._set_window(self.window)
        self.fingerprint = self._fingerprint(storage.metadata_files(self.root))
        self._cache_frames = cache_frames
        self._frames = FrameStore(
            self.root,
            self.episodes,
            {camera: self.info.features[camera] for camera in self.cameras},
            times,
            [self._columns.file_rows[s] for s in self.episode_slices],
            tolerance_s,
            cache_frames,
            open_videos,
            None if self._stream is None else CheckedVideos(self._stream.path, parts, tolerance_s),
        )

    def without_images(self) -> "LeRobotDataset":
        """Return the same frames without decoding an image; columns and fingerprint are shared."""
        blind = copy.copy(self)
        blind.cameras = ()
        return blind

    def without_past(self) -> "LeRobotDataset":
        """Return the same frames, each sample's observation the present one alone; all else is shared."""
        present = copy.copy(self)
        present._set_window(self.window.without_past())
        return present

    def __len__(self) -> int:
        return len(self._actions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = frame_number(index, len(self))
        position = int(self._positions[row])
        start, stop = self.episode_slices[position].start, self.episode_slices[position].stop
        rows, is_pad = window(row, start, stop, self._action_offsets)
        item: dict[str, Any] = {}
        for camera in self.cameras:
            if camera in self._past_offsets:
                seen, item[f"{camera}_is_pad"] = self._past(row, position, camera)
                item[camera] = torch.from_numpy(self._frames.get_many(position, seen - start, camera))
            else:
                item[camera] = torch.from_numpy(self._frames.get(position, row - start, camera))
        # Indexing with arrays copies, so that a caller may edit an item without touching the dataset.
        if self.state_key in self._past_offsets:
            seen, item[f"{self.state_key}_is_pad"] = self._past(row, position, self.state_key)
            item[self.state_key] = torch.from_numpy(self._states[seen])
        else:
            item[self.state_key] = torch.from_numpy(self._states[row].copy())
        item[self.action_key] = torch.from_numpy(self._actions[rows])
        item[f"{self.action_key}_is_pad"] = torch.from_numpy(is_pad)
        item |= {key: values[row].clone() for key, values in self._others.items()}
        item |= {key: texts[row] for key, texts in self._texts.items()}
        item[TASK_KEY] = self.info.tasks[int(self._columns.numbers["task_index"][row])]
        return item

    def _choose_vectors(self, state: str | Sequence[str], action: str | Sequence[str]) -> None:
        self.state_columns, self.action_columns = columns_of(state), columns_of(action)
        self.state_feature = self.info.vector(state, STATE_KEY, "the state")
        self.action_feature = self.info.vector(action, ACTION_KEY, "the actions")
        if self.state_key == self.action_key:
            raise ConfigError(
                f"State and actions would both be called '{self.state_key}' in an item: state_key is "
                f"{state!r}, action_key {action!r}."
            )

    def _set_window(self, window: Window) -> None:
        """Take a window over; what is read of one frame alone has no entry among the past offsets."""
        if unknown := sorted(window.cameras.keys() - {*self.info.cameras, *self.cameras}):
            raise ConfigError(
                f"The window names the cameras {unknown}, but the dataset has {list(self.info.cameras)}. "
                "Window.rekeyed puts a policy's slots under the dataset's keys."
            )
        self.window = window
        self._action_offsets = np.array(window.actions)
        offsets = {self.state_key: window.state} | {key: window.of_camera(key) for key in self.cameras}
        self._past_offsets = {key: np.array(own) for key, own in offsets.items() if len(own) > 1}

    def _past(self, row: int, position: int, key: str) -> tuple[np.ndarray, torch.Tensor]:
        """Return the rows that are read of a column or camera, and which lie before the episode."""
        span = self.episode_slices[position]
        rows, is_pad = window(row, span.start, span.stop, self._past_offsets[key])
        return rows, torch.from_numpy(is_pad)

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return str(self.root)

    def low_dim(self, key: str) -> np.ndarray:
        """Return a whole numeric column of the selected episodes, without touching any video.

        It is the dataset's own array, and can only be read: `.copy()` gives one to change.

        Args:
            key: Column; the state and the actions are float32 `[n, d]`, scalars are `[n]`.

        Raises:
            DatasetError: There is no such numeric column.
        """
        special = {self.state_key: self._states, self.action_key: self._actions}
        if key in special:
            return locked(special[key])
        if key not in self._columns.numbers:
            self._check_left_out(key)
            options = sorted(self._columns.numbers)
            raise DatasetError(
                f"There is no numeric column '{key}' in {options}.{did_you_mean(key, options)}"
            )
        return locked(self._columns.numbers[key])

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the distinct texts of a string column of the selected episodes.

        Raises:
            DatasetError: There is no such string column.
        """
        return self._text(key).texts

    def text_numbers(self, key: str) -> np.ndarray:
        """Return, for every frame, the place of its text among `texts(key)`, `[n]`.

        Raises:
            DatasetError: There is no such string column.
        """
        return locked(self._text(key).codes)

    def _text(self, key: str) -> TextColumn:
        if key not in self._columns.texts:
            self._check_left_out(key)
            there = (options := sorted(self._columns.texts)) or f"{self.name}, nor any other"
            raise DatasetError(f"There is no text column '{key}' in {there}.{did_you_mean(key, options)}")
        return self._columns.texts[key]

    def _check_left_out(self, key: str) -> None:
        if key in self.left_out:
            raise DatasetError(f"The column '{key}' of {self.root} was left out: {self.left_out[key]}")

    @with_own_arguments
    def to_datasets(
        self, *, streaming: bool = False, videos: Videos | None = None
    ) -> "datasets.Dataset | datasets.IterableDataset":
        """Return the selected episodes and cameras as a table of Hugging Face `datasets`, one frame a row.

        Columns keep their keys, as numbers, lists and text; `task` is the instruction. Images are `Image`s. A
        camera that is stored in videos is a `Video` (the path of its file), and a row's frame is shown at
        `<camera>.from_timestamp` + `timestamp`; or, with `videos="images"`, an `Image` of that frame. Where a
        `Video` is decoded, `datasets` asks for torchcodec; `Video(decode=False)` gives its path without.

        Args:
            streaming: Return an `IterableDataset`, an episode a shard, which decodes as it goes and writes
                nothing. A `Dataset` with images is written to the cache of `datasets`, once.
            videos: `"video"` or `"images"`; null is `"images"` where streamed and `"video"` where not.

        Raises:
            ConfigError: `videos` is something else.
            DatasetError: An image or a frame cannot be read.
        """
        recordings = Recordings(
            self.root,
            self.fingerprint,
            self.episodes,
            self.episode_slices,
            self._columns,
            self.info.tasks,
            {camera: self.info.features[camera] for camera in self.cameras},
            self._frames,
            self.root.joinpath if self._stream is None else self._stream.path,
        )
        return to_table(recordings, streaming=streaming, videos=videos)

    def preload(self, progress: ProgressCallback | None = None) -> None:
        """Decode every frame now (needs `cache_frames`); workers forked afterwards share the memory.

        Args:
            progress: Called with (episodes done, episodes in all).

        Raises:
            ConfigError: `cache_frames` is off, so nothing would be kept.
            DatasetError: A frame cannot be decoded.
        """
        if not self._cache_frames:
            raise ConfigError("preload keeps frames in memory, which needs cache_frames=True.")
        self._frames.preload(progress)

    def shuffle_window(self, episodes: int) -> ShuffleWindow:
        """Return a shuffle that reads few video files at a time, for `WindowedEpochs`.

        Args:
            episodes: How many are mixed with one another at any time, about: so many files as hold them, and
                at least two.

        Raises:
            ConfigError: The disk space for streamed files may not hold those of the window.
        """
        episodes = as_count(episodes, "The number of episodes to shuffle among")
        files = [tuple(e.videos[c].path for c in self.cameras if c in e.videos) for e in self.episodes]
        numbers = {group: number for number, group in enumerate(dict.fromkeys(files))}
        size = max(2, math.ceil(episodes * len(numbers) / len(files)))
        if self._stream is not None and self._stream.disk_bytes is not None:
            groups = sorted(sum(self._video_sizes[name] for name in group) for group in numbers)
            if (needed := sum(groups[-size:])) > self._stream.disk_bytes:
                raise ConfigError(
                    f"Shuffling among {episodes} episodes may take {needed / 1e9:.3g} GB of video files at "
                    f"once, but streamed files may take {self._stream.disk_bytes / 1e9:.3g} GB: give more "
                    "disk space, or shuffle among fewer."
                )
        blocks = [numbers[group] for group in files]
        return ShuffleWindow(np.repeat(blocks, [episode.length for episode in self.episodes]), size)

    def close(self) -> None:
        """Close the video files that this process has open; the next item opens what it needs."""
        self._frames.close()

    def _fetch_files(self, source: DatasetLocation) -> None:
        videos = {e.videos[c].path for e in self.episodes for c in self.cameras if c in e.videos}
        self._tables = sorted({episode.data_path for episode in self.episodes})
        source.fetch(self._tables if self._stream is not None else [*self._tables, *sorted(videos)])

    def _check_files(
        self, parts: Mapping[str, Sequence[VideoPart]], tolerance_s: float | None, asked_for: bool
    ) -> None:
        """Compare images and videos with the metadata; cameras of distances are left out."""
        stored = [self.info.features[key] for key in self.cameras if self.info.features[key].dtype == "image"]
        found = check_images(self.root, stored, self.episodes)
        if self._stream is None:
            found |= check_videos(self.root, parts, tolerance_s)
        self.info, self.cameras = without_depth(self.root, self.info, self.cameras, found, asked_for)
        self._videos = sorted(name for name in parts if parts[name][0].camera.key in self.cameras)
        if self._stream is not None:
            self._video_sizes = self._stream.sizes(self._videos)
        else:
            self._video_sizes = {name: (self.root / name).stat().st_size for name in self._videos}

    def _video_parts(self, times: Sequence[np.ndarray]) -> dict[str, list[VideoPart]]:
        """Return which episodes of which camera lie in each video file, by its path in the dataset."""
        parts: dict[str, list[VideoPart]] = {}
        for episode, own in zip(self.episodes, times, strict=True):
            for key in self.cameras:
                if (span := episode.videos.get(key)) is not None:
                    camera, start = self.info.features[key], span.start
                    part = VideoPart(camera, episode.index, start + own, span.stop, span.whole)
                    parts.setdefault(span.path, []).append(part)
        return parts

    def _fingerprint(self, metadata: Sequence[Path]) -> str:
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in (self.root / INFO_PATH, *metadata)))
        digest.update(repr([episode.index for episode in self.episodes]).encode())
        for columns in (self.state_columns, self.action_columns):
            if len(columns) > 1:  # which columns are read is part of what a dataset says, joined or not
                digest.update(repr(columns).encode())
        for name in self._tables:
            if not (self.root / name).exists():
                raise DatasetError(f"{self.root / name} is missing: the dataset is incomplete.")
        sizes = {name: (self.root / name).stat().st_size for name in self._tables} | self._video_sizes
        for name in (*self._tables, *self._videos):
            digest.update(f"{name} {sizes[name]}\n".encode())
        return digest.hexdigest()[:32]

    def _load_rows(self, every: Sequence[Episode], tolerance_s: float | None) -> list[np.ndarray]:
        """Read the columns; return the times of each episode's frames since its start, in seconds."""
        starts = np.cumsum([0, *(episode.length for episode in every)]).tolist()
        rows_before = {episode.index: start for episode, start in zip(every, starts, strict=False)}
        vectors = (*self.state_columns, *self.action_columns)
        self._take_columns(read_columns(self.root, self.info, self.episodes, vectors, rows_before))
        return self._check_times(tolerance_s)

    def _take_columns(self, columns: Columns) -> None:
        """Take the columns of the selected episodes over."""
        self._columns, numbers = columns, columns.numbers
        vectors = (self.state_key, self.action_key)
        check_item_keys(*vectors, self.cameras)
        made = made_keys([*vectors, *self.info.cameras]) - {self._task_column}
        hidden = hidden_columns(str(self.root), columns, vectors, made)
        self.left_out = {**columns.left_out, **hidden}
        lengths = [episode.length for episode in self.episodes]
        ends = np.cumsum(lengths).tolist()
        self.episode_slices = [slice(end - n, end) for n, end in zip(lengths, ends, strict=True)]
        self._positions = np.repeat(np.arange(len(lengths)), lengths)
        self._states, self._actions = (
            as_vectors({key: numbers[key] for key in columns}, partial(place_of, self))
            for columns in (self.state_columns, self.action_columns)
        )
        self.state_dim, self.action_dim = self._states.shape[1], self._actions.shape[1]
        self._others = {
            key: torch.from_numpy(values) for key, values in numbers.items() if key not in (*vectors, *hidden)
        }
        self._texts = {key: text for key, text in columns.texts.items() if key not in hidden}
        seen = [tasks_of(self, span) for span in self.episode_slices]
        say_other_tasks(str(self.root), self.episodes, seen)
        self.episodes = [replace(e, tasks=own) for e, own in zip(self.episodes, seen, strict=True)]
        say_no_task(self)

    def _check_times(self, tolerance_s: float | None) -> list[np.ndarray]:
        """Return the times of each episode's frames since its start, in seconds."""
        numbers = self._columns.numbers
        times = frame_times(numbers["timestamp"], numbers["frame_index"], self.info.fps)
        check_times(times, self.episode_slices, self.episodes, self.info.fps, tolerance_s)
        return [times[span] for span in self.episode_slices]
