"""Read one camera frame of an episode, wherever it is stored; errors name the frame."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla.data.images import ParquetImages
from vla.data.lerobot.episodes import Episode
from vla.data.lerobot.schema import Feature
from vla.data.video import OPEN_VIDEOS, VideoReaders
from vla.errors import DatasetError
from vla.types import ProgressCallback, as_flag


class FrameStore:
    """Frames of the selected episodes and cameras.

    Args:
        root: Dataset folder.
        episodes: The selected episodes.
        cameras: Feature by key of the cameras to read.
        times: Per episode, the time of each frame since its start, in seconds.
        file_rows: Per episode, the row of each frame in its parquet file.
        tolerance_s: See `VideoReader.frame`.
        cache: Decode an episode's frames at the first request for one of them, and keep them (uint8) in
            memory, so that each frame is decoded once per process. Processes forked after that share them.
        open_videos: Video files that each process keeps open.
        locate: Path of a video by its name in the dataset; by default it is in `root`.
        images: Reads images that are not in videos, as `ParquetImages.read`, which does by default.
    """

    def __init__(
        self,
        root: Path,
        episodes: Sequence[Episode],
        cameras: Mapping[str, Feature],
        times: Sequence[np.ndarray],
        file_rows: Sequence[np.ndarray],
        tolerance_s: float | None,
        cache: bool,
        open_videos: int = OPEN_VIDEOS,
        locate: Callable[[str], Path] | None = None,
        images: Any = None,
    ) -> None:
        self._root = root
        self._episodes = episodes
        self._cameras = cameras
        self._times = times
        self._file_rows = file_rows
        self._tolerance_s = tolerance_s
        self._kept: dict[tuple[int, str], np.ndarray] | None = {} if as_flag(cache, "cache_frames") else None
        self._videos = VideoReaders(open_videos, locate or root.joinpath)
        self._images = ParquetImages() if images is None else images

    def get(self, position: int, frame: int, camera: str) -> np.ndarray:
        """Return one frame.

        Args:
            position: Place of the episode in the selection.
            frame: Frame of the episode.
            camera: Camera key.

        Returns:
            uint8 `[3, h, w]`, which the caller may change.

        Raises:
            DatasetError: The frame cannot be decoded, or has another size than info.json says; the message
                names camera, episode and frame.
        """
        if self._kept is None:
            return self._decode(position, frame, camera)
        if (position, camera) not in self._kept:
            length = self._episodes[position].length
            self._kept[position, camera] = np.stack(
                [self._decode(position, f, camera) for f in range(length)]
            )
        return self._kept[position, camera][frame].copy()

    def get_many(self, position: int, frames: Sequence[int] | np.ndarray, camera: str) -> np.ndarray:
        """Return several frames of an episode; asked for in ascending order, a video is read forward.

        Args:
            position: Place of the episode in the selection.
            frames: Frames of the episode, `[o]`; one that comes several times in a row is decoded once.
            camera: Camera key.

        Returns:
            uint8 `[o, 3, h, w]`, the caller's own.

        Raises:
            DatasetError: See `get`.
        """
        height, width = self._cameras[camera].shape[:2]
        images = np.empty((len(frames), 3, height, width), dtype=np.uint8)
        for place, frame in enumerate(frames):
            if place and frame == frames[place - 1]:
                images[place] = images[place - 1]
            else:
                images[place] = self.get(position, int(frame), camera)
        return images

    def preload(self, progress: ProgressCallback | None = None) -> None:
        """Decode everything now, so that worker processes forked afterwards share the frames."""
        total = len(self._episodes)
        for position in range(total):
            for camera in self._cameras:
                self.get(position, 0, camera)
            if progress is not None:
                progress(position + 1, total)

    def close(self) -> None:
        """Close the video files that this process has open."""
        self._videos.close()

    def _decode(self, position: int, frame: int, camera: str) -> np.ndarray:
        episode = self._episodes[position]
        feature = self._cameras[camera]
        try:
            if feature.dtype == "video":
                span = episode.videos[camera]
                seconds = span.start + float(self._times[position][frame])
                with self._videos.borrow(span.path) as reader:
                    pixels = reader.frame(seconds, self._tolerance_s)
            else:
                row = int(self._file_rows[position][frame])
                pixels = self._images.read(self._root / episode.data_path, row, camera)
        except DatasetError as error:
            raise DatasetError(f"{camera}, episode {episode.index}, frame {frame}: {error}") from error
        if pixels.shape[:2] != feature.shape[:2]:
            raise DatasetError(
                f"{camera}, episode {episode.index}, frame {frame}: decoded {list(pixels.shape[:2])} pixels, "
                f"but meta/info.json says {list(feature.shape[:2])}."
            )
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def __getstate__(self) -> dict[str, Any]:
        # Another process decodes for itself: sending the frames would cost more than reading them again.
        return {**self.__dict__, "_kept": None if self._kept is None else {}}
