"""Frames of a video file by time, exactly: the frame returned was shown at the time asked for.

A seek lands on a key frame at or before the time, and frames are decoded from there. Where it lands too
late (open groups of pictures, as in HEVC), the seek is repeated further back. A frame whose time
differs from the one asked for by more than the tolerance is an error, never a neighbour's frame.
"""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from vla.data.hub import refuse_pointer
from vla.errors import DatasetError
from vla.types import as_count

DEFAULT_TOLERANCE_S = 1e-4
"""LeRobot's. Frame times are exact fractions, so what remains is rounding: to the container's ticks
(half a tick is added, it is known per file) and of `from_timestamp`, a sum of floats. Half a frame would
be the loosest tolerance that is unambiguous, and would hide recordings whose video is out of step."""

OPEN_VIDEOS = 64
"""Video files of a dataset that each process keeps open; each of 224 x 224 pixels takes about a megabyte."""

_READ_ON = 3  # frames; decoding so many costs less than a seek
_MP4_SUFFIXES = (".mp4", ".mov", ".m4v")


class VideoReader:
    """One open video file. Frames may be asked for in any order; in sequence is fastest.

    Raises:
        DatasetError: The file is missing, truncated or not a video.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._container: InputContainer = av.open(str(path))
        except (av.FFmpegError, OSError) as error:
            raise DatasetError(
                f"{path} cannot be opened as a video (truncated or corrupt?): {error}."
            ) from error
        if not self._container.streams.video:
            raise DatasetError(f"{path} holds no video stream.")
        self._stream = self._container.streams.video[0]
        # Workers decode in parallel already; more threads per decoder would only compete.
        self._stream.codec_context.thread_count = 1
        assert self._stream.time_base is not None
        self._tick = float(self._stream.time_base)
        rate = self._stream.average_rate or self._stream.base_rate
        self._period = 1 / float(rate) if rate else 1 / 30
        self._to_rgb = VideoReformatter()
        self._frames: Iterator[VideoFrame] = iter(())
        self._before: VideoFrame | None = None
        self._head: VideoFrame | None = None

    def frame(self, seconds: float, tolerance_s: float | None = None) -> np.ndarray:
        """Decode the frame shown at a time.

        Args:
            seconds: Time in the file.
            tolerance_s: Largest difference between that and the frame's own time; by default
                `DEFAULT_TOLERANCE_S` plus half a tick of the file's clock.

        Returns:
            uint8 `[h, w, 3]`.

        Raises:
            DatasetError: No frame is close enough, or the file cannot be decoded there.
        """
        tolerance = DEFAULT_TOLERANCE_S + self._tick / 2 if tolerance_s is None else tolerance_s
        try:
            frame = self._nearest(round(seconds / self._tick))
        except (av.FFmpegError, OSError) as error:
            raise DatasetError(f"{self.path} cannot be decoded at {seconds:.4f} s: {error}.") from error
        if frame is None:
            raise DatasetError(
                f"{self.path} has no frame at {seconds:.4f} s: nothing could be decoded there."
            )
        shown = _pts(frame) * self._tick
        distance = abs(shown - seconds)
        if distance > tolerance:
            raise DatasetError(
                f"{self.path} has no frame at {seconds:.4f} s: the nearest, at {shown:.4f} s, "
                f"is {distance:.4f} s away (tolerance {tolerance:.4f} s). The video is truncated, or out of "
                "step with the recorded timestamps; tolerance_s widens the tolerance."
            )
        # One thread here as well: waking others takes longer than a small image.
        return self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _nearest(self, target: int) -> VideoFrame | None:
        """Return the frame whose time is nearest to `target` ticks, moving on or seeking as needed."""
        head = _pts(self._head)
        if head is None or not self._is_at_hand(target, head):
            self._seek(target)
        while self._head is not None and _pts(self._head, 0) < target:
            following = next(self._frames, None)
            if following is None:
                # The file ends here: the decoder is exhausted, so the next request has to seek.
                last, self._head, self._before = self._head, None, None
                return last
            self._before, self._head = self._head, following
        candidates = [frame for frame in (self._before, self._head) if frame is not None]
        return min(candidates, key=lambda frame: abs(_pts(frame, 0) - target), default=None)

    def _is_at_hand(self, target: int, head: int) -> bool:
        if target > head:
            return (target - head) * self._tick <= (_READ_ON + 0.5) * self._period
        before = _pts(self._before)
        return target == head or (before is not None and before <= target)

    def _seek(self, target: int) -> None:
        start = self._stream.start_time or 0
        back = 0
        while True:
            offset = max(start, target - back)
            self._container.seek(offset, stream=self._stream, backward=True, any_frame=False)
            self._frames = (f for f in self._container.decode(self._stream) if f.pts is not None)
            self._before, self._head = None, next(self._frames, None)
            if offset == start or (self._head is not None and _pts(self._head, 0) <= target):
                return
            back = max(2 * back, round(1 / self._tick))


class VideoReaders:
    """Open readers by name, for any number of threads; the least recently used one is closed for the next.

    Opening a file and reading its index takes as long as decoding some frames, so that random access is about
    twice as fast with open files. A decoder must not be used in another process: pickling drops them, and
    after a fork the inherited ones are set aside. They are not closed, because a decoder waits for its
    threads to end, and the threads of the parent do not exist in the child.

    Args:
        capacity: Readers open at once in each process, at least 1; while more threads than that read, one
            for each.
        locate: Returns the path of a name when a file is to be opened; it may download it first.
    """

    def __init__(self, capacity: int = OPEN_VIDEOS, locate: Callable[[str], Path] = Path) -> None:
        self._capacity, self._locate = as_count(capacity, "open_videos"), locate
        self._lock = Lock()
        self._idle: list[tuple[str, VideoReader]] = []  # the one that was used last at the end
        self._inherited: list[list[tuple[str, VideoReader]]] = []
        self._process = os.getpid()

    @contextmanager
    def borrow(self, name: str) -> Iterator[VideoReader]:
        """Give the reader of a file to this thread alone, for as long as the context lasts.

        It is opened if none is idle: threads that read one file at a time have a reader each.

        Raises:
            DatasetError: See `VideoReader`.
        """
        reader = self._take(name)
        if reader is None:
            path = self._locate(name)
            self._close_all_but(self._capacity - 1)
            reader = VideoReader(path)
        process = os.getpid()
        try:
            yield reader
        finally:
            if process == os.getpid():
                self._give_back(name, reader)

    def close(self) -> None:
        """Close the idle files that this process has open; the next request opens them again."""
        self._leave_inherited()
        self._close_all_but(0)

    def _take(self, name: str) -> VideoReader | None:
        """Return the idle reader of a file that was used last, if there is one."""
        self._leave_inherited()
        with self._lock:
            places = [place for place, (own, _) in enumerate(self._idle) if own == name]
            return self._idle.pop(places[-1])[1] if places else None

    def _give_back(self, name: str, reader: VideoReader) -> None:
        with self._lock:
            self._idle.append((name, reader))
        self._close_all_but(self._capacity)

    def _close_all_but(self, keep: int) -> None:
        """Close the idle readers that were not used for longest, until `keep` are left."""
        with self._lock:
            surplus = max(0, len(self._idle) - keep)
            closing, self._idle = self._idle[:surplus], self._idle[surplus:]
        for _, reader in closing:
            reader.close()

    def _leave_inherited(self) -> None:
        if (
            self._process != os.getpid()
        ):  # after a fork there is one thread, and the lock may be held for ever
            self._inherited.append(self._idle)
            self._idle, self._lock, self._process = [], Lock(), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"_capacity": self._capacity, "_locate": self._locate}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_capacity"], state["_locate"])


def check_container(path: Path) -> None:
    """Raise `DatasetError` if an mp4 file is missing, empty or cut off, without decoding anything.

    Reads the sizes of the outermost boxes, some microseconds a file, so that a truncated video is found
    when the dataset is opened rather than in the middle of a run. Of other containers only the existence is
    checked.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            raise DatasetError(f"{path} is empty.")
        refuse_pointer(path)
        if path.suffix.lower() not in _MP4_SUFFIXES:
            return
        kinds = _mp4_boxes(path, size)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path} is missing: the dataset is incomplete, or video_path of meta/info.json leads elsewhere."
        ) from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from error
    if b"moov" not in kinds:
        raise DatasetError(
            f"{path} is not a complete mp4 file: it has no index (truncated, or never finished?)."
        )


def _mp4_boxes(path: Path, size: int) -> set[bytes]:
    kinds = set()
    at = 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            header = file.read(16)
            if len(header) < 8:
                raise DatasetError(f"{path} is truncated: {size} bytes end in the middle of a box header.")
            length, kind = struct.unpack(">I4s", header[:8])
            if length == 1 and len(header) == 16:
                length = struct.unpack(">Q", header[8:])[0]
            if length == 0:  # the last box, reaching to the end of the file
                length = size - at
            if length < 8 or at + length > size:
                raise DatasetError(
                    f"{path} is truncated or corrupt: its part '{kind.decode('latin-1')}' should end at byte "
                    f"{at + length}, the file has {size}."
                )
            kinds.add(kind)
            at += length
    return kinds


def _pts(frame: VideoFrame | None, default: Any = None) -> Any:
    return default if frame is None else frame.pts
