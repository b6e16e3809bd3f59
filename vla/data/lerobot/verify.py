"""Metadata against files: what is said of rows, videos and images, compared when a dataset is opened.

Nothing is decoded: of a video its container's header is read, of images in parquet the first one's header in
each file. Videos of a streamed dataset are compared when they are first fetched (`CheckedVideos`).

| compared | with |
|---|---|
| `timestamp` of the rows | themselves: they rise, by 1 / `fps` of info.json |
| `shape` of a camera | the size of its videos and images |
| an episode's times in a video | where the video begins and ends, and the times of its frames |
| parts of videos (`from_timestamp`) | each other: no two episodes are at one place |
| that a camera sees colours | the format of its pixels |
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from vla.data.images import first_header
from vla.data.lerobot.episodes import Episode
from vla.data.lerobot.fields import grey_depth
from vla.data.lerobot.schema import Feature
from vla.data.video import DEFAULT_TOLERANCE_S, check_container
from vla.errors import DatasetError
from vla.types import as_number

_DRIFT = 0.01  # of a step; frame rates of video (29.97 for 30) differ by less
_READERS = 8  # threads; a v2.1 dataset has many small files, and opening one waits for the disk


@dataclass(frozen=True)
class VideoPart:
    """An episode's part of a video file.

    Attributes:
        camera: Its description.
        episode: The episode's index.
        times: Time of each of its frames in the file, in seconds, float64 `[n]`.
        stop: Where the metadata say that the part ends; None where they do not.
        whole: See `VideoSpan`.
    """

    camera: Feature
    episode: int
    times: np.ndarray
    stop: float | None = None
    whole: bool = False


def check_times(
    times: np.ndarray,
    spans: Sequence[slice],
    episodes: Sequence[Episode],
    fps: float,
    tolerance_s: float | None,
) -> None:
    """Check that an episode's times rise by 1 / fps from row to row, up to half of that.

    Args:
        times: Time of every row since its episode's start, in seconds, float64 `[n]`.
        spans: The rows of each episode.
        episodes: Their episodes.
        fps: What info.json says.
        tolerance_s: Allows for larger differences, where it is larger.

    Raises:
        DatasetError: They do not; the message names episode, frame and `fps`.
        ConfigError: The tolerance is not a number of at least 0.
    """
    period = 1 / fps
    if tolerance_s is not None:
        as_number(tolerance_s, "tolerance_s", at_least=0)
    allowed = max(period / 2, tolerance_s or 0)
    steps = np.diff(times)
    within = np.ones(len(steps), dtype=bool)
    within[[span.stop - 1 for span in spans[:-1]]] = False
    wrong = np.flatnonzero(within & ((steps <= 0) | (np.abs(steps - period) > allowed)))
    for row in wrong[:1].tolist():
        place = next(number for number, span in enumerate(spans) if span.start <= row < span.stop)
        frame = row - spans[place].start
        raise DatasetError(
            f"The timestamps of episode {episodes[place].index} do not rise by {period:.4f} s from frame to "
            f"frame, as fps = {fps:g} in meta/info.json says: frame {frame} has {times[row]:.4f} s, frame "
            f"{frame + 1} has {times[row + 1]:.4f} s. Repair the column 'timestamp' or fps, or leave out the "
            "episode; tolerance_s allows for larger differences."
        )
    for span, episode in zip(spans, episodes, strict=True):
        steps_in = span.stop - span.start - 1
        drift = abs(times[span.stop - 1] - times[span.start] - steps_in * period)
        if drift > max(allowed, _DRIFT * steps_in * period):
            rate = steps_in / (times[span.stop - 1] - times[span.start])
            raise DatasetError(
                f"meta/info.json says fps = {fps:g}, but the timestamps of episode {episode.index} rise as "
                f"at {rate:.4g} frames per second. Repair the one that is wrong."
            )


def check_parts(
    episodes: Iterable[Episode],
    cameras: Sequence[str],
    fps: float,
    remedy: str = "from_timestamp in meta/episodes (v3.0) or video_path in meta/info.json (v2.1)",
) -> None:
    """Check that no two episodes share a place in a video.

    Args:
        episodes: The episodes.
        cameras: Cameras in videos, or others.
        fps: Frames per second.
        remedy: What says where they are; `{camera}` stands for the camera's key.

    Raises:
        DatasetError: Two do; the message names them and the file.
    """
    for camera in cameras:
        files: dict[str, list[tuple[float, float, int]]] = {}
        for episode in episodes:
            if camera in episode.videos:
                part = episode.videos[camera]
                end = part.start + (episode.length - 0.5) / fps
                files.setdefault(part.path, []).append((part.start, end, episode.index))
        for path, parts in files.items():
            parts.sort()
            for (_, end, first), (start, _, second) in pairwise(parts):
                if start < end:
                    raise DatasetError(
                        f"The metadata put episodes {first} and {second} at one place in {path}: the first "
                        f"ends after {end:.4f} s, the second begins at {start:.4f} s. Repair "
                        f"{remedy.format(camera=camera)}."
                    )


def check_videos(
    root: Path, parts: Mapping[str, Sequence[VideoPart]], tolerance_s: float | None
) -> dict[str, str]:
    """Compare videos with what is said of them.

    Args:
        root: The dataset's folder.
        parts: What each file is used for, by its path in the dataset.
        tolerance_s: See `VideoReader.frame`.

    Returns:
        Cameras that see distances instead of colours, with the reason.

    Raises:
        DatasetError: A file is missing or damaged, or differs from what is said; the message names it.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda name: check_video(root / name, parts[name], tolerance_s), parts)
        return {
            parts[name][0].camera.key: reason for name, reason in zip(parts, found, strict=True) if reason
        }


def check_video(path: Path, parts: Sequence[VideoPart], tolerance_s: float | None) -> str | None:
    """Compare a video with what is said of it; return why it has no colours, or None where it has.

    Raises:
        DatasetError: The file is missing or damaged, or differs from what is said.
    """
    check_container(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DatasetError(f"{path} holds no video stream.")
            stream = container.streams.video[0]
            codec = stream.codec_context
            if reason := grey_depth(codec.pix_fmt):
                return reason
            _check_size(path, parts[0].camera, (codec.height, codec.width))
            times = _Clock.of(stream)
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} cannot be opened as a video (truncated or corrupt?): {error}.") from error
    for part in parts:
        times.check(path, part, tolerance_s)
    return None


def check_images(root: Path, cameras: Sequence[Feature], episodes: Sequence[Episode]) -> dict[str, str]:
    """Compare the first image of each camera in each parquet file with what is said of it.

    Returns:
        Cameras that see distances instead of colours, with the reason.

    Raises:
        DatasetError: A column is missing, holds no images, or images of another size.
    """
    jobs = [
        (root / name, camera) for name in dict.fromkeys(e.data_path for e in episodes) for camera in cameras
    ]

    def check(job: tuple[Path, Feature]) -> str | None:
        path, camera = job
        size, reason = first_header(path, camera.key)
        if reason is None:
            _check_size(path, camera, size)
        return reason

    with ThreadPoolExecutor(_READERS) as pool:
        return {job[1].key: reason for job, reason in zip(jobs, pool.map(check, jobs), strict=True) if reason}


class CheckedVideos:
    """Paths of videos by name, each compared with what is said of it when it is first asked for.

    Args:
        find: Returns the path of a name; it may download it first.
        parts: What each file is used for, by name.
        tolerance_s: See `VideoReader.frame`.
    """

    def __init__(
        self, find: Callable[[str], Path], parts: Mapping[str, Sequence[VideoPart]], tolerance_s: float | None
    ) -> None:
        self._find, self._parts, self._tolerance_s = find, parts, tolerance_s
        self._checked: set[str] = set()

    def __call__(self, name: str) -> Path:
        """Return a video's path; raises `DatasetError` where it differs from what is said of it."""
        path = self._find(name)
        if name not in self._checked:
            if reason := check_video(path, self._parts[name], self._tolerance_s):
                raise DatasetError(f"{path} shows distances, not colours: {reason}. Leave its camera out.")
            self._checked.add(name)
        return path


@dataclass(frozen=True)
class _Clock:
    """When a video's frames are shown, as far as its header says.

    Attributes:
        start: Time of the first frame, in seconds.
        last: Time of the last frame; None where the header does not say.
        period: Seconds from frame to frame, on average; None where it does not say.
        tick: Resolution of the times.
        regular: Whether every frame is shown for the same time.
    """

    start: float
    last: float | None
    period: float | None
    tick: float
    regular: bool

    @classmethod
    def of(cls, stream: VideoStream) -> "_Clock":
        """Read a stream's header."""
        tick = float(stream.time_base or 0)
        start = (stream.start_time or 0) * tick
        rate = stream.average_rate or stream.base_rate
        period = 1 / float(rate) if rate else None
        last = None
        if period and stream.frames:
            last = start + (stream.frames - 1) * period
        elif period and stream.duration:
            last = start + stream.duration * tick - period
        return cls(start, last, period, tick, bool(rate) and stream.average_rate == stream.base_rate)

    def check(self, path: Path, part: VideoPart, tolerance_s: float | None) -> None:
        """Raise `DatasetError` unless an episode's times are those of frames, as far as can be told."""
        what = f"{path}: '{part.camera.key}' of episode {part.episode}"
        tolerance = DEFAULT_TOLERANCE_S + self.tick if tolerance_s is None else tolerance_s
        period = self.period or 0.0
        slack = max(tolerance, period / 2)
        first, last = float(part.times[0]), float(part.times[-1])
        if first < self.start - slack:
            raise DatasetError(
                f"{what} begins at {first:.4f} s, but the video begins at {self.start:.4f} s only: it is "
                "late, or the timestamps are wrong."
            )
        if self.last is not None and last > self.last + slack:
            missing = round((last - self.last) / period) if period else 0
            raise DatasetError(
                f"{what} ends at {last:.4f} s, but the last frame of the video is shown at {self.last:.4f} "
                f"s: the video is {missing} frames too short, or timestamps or from_timestamp are wrong."
            )
        if part.stop is not None and last > part.stop + slack:
            raise DatasetError(
                f"{what} ends at {last:.4f} s, outside its part of the file, which ends at {part.stop:.4f} s "
                "(to_timestamp in meta/episodes)."
            )
        step = max(period, float(np.diff(part.times).max(initial=0.0)))
        if part.whole and self.last is not None and self.last > last + step + tolerance:
            key = part.camera.key
            raise DatasetError(
                f"{what} ends at {last:.4f} s, but the video ends at {self.last:.4f} s, and no column "
                f"'{key}.from_timestamp' says where in it the episode starts: it may be that of other "
                "episodes. Keep or rename that column together with the camera's; where the episode does "
                f"start with the video, add one, '{key}.from_timestamp', of zeros."
            )
        if self.regular and period:
            self._check_grid(what, part.times, tolerance)

    def _check_grid(self, what: str, times: np.ndarray, tolerance: float) -> None:
        assert self.period is not None
        # From the episode's own first frame on: files put together may be shifted by less than a frame.
        places = (times - times[0]) / self.period
        off = np.abs(places - np.round(places)) * self.period
        shift = (times[0] - self.start) / self.period
        if abs(shift - round(shift)) * self.period > max(tolerance, self.period / 4):
            raise DatasetError(
                f"{what} begins at {times[0]:.4f} s, between two frames of the video, which shows one every "
                f"{self.period:.4f} s: from_timestamp or the timestamps are wrong."
            )
        if len(wrong := np.flatnonzero(off > tolerance)):
            frame = int(wrong[0])
            nearest = times[0] + round(float(places[frame])) * self.period
            raise DatasetError(
                f"{what}, frame {frame}: the video has no frame at {times[frame]:.4f} s: the nearest, at "
                f"{nearest:.4f} s, is {off[frame]:.4f} s away (tolerance {tolerance:.4f} s). The video is "
                "out of step with the recorded timestamps; tolerance_s widens the tolerance."
            )


def _check_size(path: Path, camera: Feature, size: tuple[int, int]) -> None:
    if size != camera.shape[:2]:
        turned = " (height and width are swapped)" if size == camera.shape[1::-1] else ""
        raise DatasetError(
            f"{path}: its images are {size[0]} high and {size[1]} wide, but the shape of '{camera.key}' in "
            f"meta/info.json says {camera.shape[0]} high and {camera.shape[1]} wide{turned}. Repair its "
            "shape and names there."
        )
