"""Frames into an mp4 file, through PyAV.

Every second frame is a key frame (as in LeRobot's own recordings), so that a random frame costs two
decodes at most; there are no B frames, so that a frame's place in the file is its time.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vla.errors import ConfigError, ShapeError
from vla.types import as_number

Codec = Literal["h264", "av1", "lossless"]

KEY_FRAME_EVERY = 2
MAX_RATE = 1000
"""Frames a second: timestamps are float32, which tell no more frames of a long episode apart."""
PIXEL_FORMAT = "yuv420p"
RGB_FORMAT = "gbrp"
"""What H.264 of RGB is decoded to: every pixel as it was."""
_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "23", "preset": "veryfast", "bf": "0"}),
    "av1": ("libsvtav1", {"crf": "30", "preset": "10"}),
    "lossless": ("libx264rgb", {"qp": "0", "preset": "ultrafast", "bf": "0"}),
}


def stored_format(codec: str) -> tuple[str, str]:
    """Return a codec as info.json names it, and the format of its pixels."""
    return ("h264", RGB_FORMAT) if codec == "lossless" else (codec, PIXEL_FORMAT)


def check_video_format(codec: str, fps: float, height: int, width: int) -> None:
    """Raise `ConfigError` on an unknown codec, a rate that `whole_rate` refuses, or an odd size."""
    if not isinstance(codec, str) or codec not in _ENCODERS:
        raise ConfigError(f"codec must be one of {sorted(_ENCODERS)}, got '{codec}'.")
    whole_rate(fps)
    halves = codec != "lossless"  # their colours have half the resolution
    if (halves and (height % 2 or width % 2)) or height < 2 or width < 2:
        raise ConfigError(
            f"Video frames need even sizes, got {height}x{width}: crop or pad them by one pixel."
            if halves
            else f"Video frames need at least 2x2 pixels, got {height}x{width}."
        )


def whole_rate(fps: Any) -> int:
    """Return a rate as a Python integer, whichever kind of number it is.

    Raises:
        ConfigError: It is not a whole number from 1 to `MAX_RATE`.
    """
    try:
        rate = as_number(fps, "fps")
    except ConfigError:
        rate = 0
    if rate < 1 or rate != int(rate):
        raise ConfigError(f"fps must be a whole number of frames per second, got {fps!r}.")
    if rate > MAX_RATE:
        raise ConfigError(f"fps must be at most {MAX_RATE} frames per second, got {fps!r}.")
    return int(rate)


class VideoEncoder:
    """Appends frames to one mp4 file at a constant rate.

    Args:
        path: File to create; its folder is created too.
        fps: Frames per second.
        height: Pixels, even.
        width: Pixels, even.
        codec: `"h264"` (libx264, crf 23) or `"av1"` (SVT-AV1, crf 30), both yuv420p; or `"lossless"` (H.264
            of RGB), whose frames come back to the bit, of any size.

    Attributes:
        num_frames: Frames given so far.
        num_bytes: Bytes written so far; the encoder may hold some frames back.

    Raises:
        ConfigError: See `check_video_format`.
    """

    def __init__(self, path: Path, fps: int, height: int, width: int, codec: Codec = "h264") -> None:
        check_video_format(codec, fps, height, width)
        self.path = path
        self.num_frames = 0
        self.num_bytes = 0
        self._size = (height, width)
        self._fps = fps = whole_rate(fps)
        name, options = _ENCODERS[codec]
        if codec == "av1":
            os.environ.setdefault("SVT_LOG", "1")  # silences the encoder's banner on stderr
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w")
        stream = self._container.add_stream(name, rate=fps, options={**options, "g": str(KEY_FRAME_EVERY)})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = width, height
        stream.pix_fmt = self._format = "rgb24" if codec == "lossless" else PIXEL_FORMAT
        # One thread, for colour conversion as well: the bytes of a recording then depend on the frames alone.
        stream.codec_context.thread_count = 1
        self._reformatter = VideoReformatter()
        stream.codec_context.time_base = Fraction(1, fps)
        self._stream = stream

    def append(self, frames: Iterable[np.ndarray]) -> None:
        """Encode uint8 frames `[h, w, 3]`; the first one becomes a key frame.

        Raises:
            ShapeError: A frame has another size or dtype than the file.
        """
        for position, pixels in enumerate(frames):
            if pixels.shape != (*self._size, 3) or pixels.dtype != np.uint8:
                raise ShapeError(
                    f"{self.path.name}: frames must be uint8 {[*self._size, 3]}, "
                    f"got {pixels.dtype} {list(pixels.shape)}."
                )
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if self._format != "rgb24":
                frame = self._reformatter.reformat(frame, format=self._format, threads=1)
            frame.pts = self.num_frames
            frame.time_base = Fraction(1, self._fps)
            if position == 0:
                frame.pict_type = PictureType.I
            self._mux(frame)
            self.num_frames += 1

    def close(self) -> None:
        """Flush the encoder and complete the file."""
        if self.num_frames:
            self._mux(None)
        self._container.close()

    def _mux(self, frame: av.VideoFrame | None) -> None:
        with same_scheduling():
            packets = self._stream.encode(frame)
        for packet in packets:
            self.num_bytes += packet.size
            self._container.mux(packet)


@contextmanager
def same_scheduling() -> Iterator[None]:
    """Restore the calling thread's scheduling after the block.

    Run by root, SVT-AV1 makes the thread that starts it a real-time one. What it does next, and every process
    that it forks, would then keep all other programs of the machine from running.
    """
    if not hasattr(os, "sched_getscheduler"):  # not on Linux
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != before[0]:
            os.sched_setscheduler(0, *before)
