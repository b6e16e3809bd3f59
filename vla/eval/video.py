"""Frames into an mp4 that every browser plays: h264, yuv420p, whole or not there at all."""

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla.atomic import atomic_write
from vla.errors import ConfigError, ShapeError

PAPER = (250, 250, 248)
INK = (38, 38, 46)
GOOD = (44, 150, 84)
BAD = (206, 58, 40)


def write_video(path: Path | str, frames: Iterable[np.ndarray], fps: int = 10) -> None:
    """Write `frames` to `path`, in one step; an existing file is replaced.

    Args:
        path: A file name that ends in `.mp4`.
        frames: uint8 `[h, w, 3]` each, all of one size; an array `[t, h, w, 3]` will do. Odd sizes gain a
            line or column, which yuv420p asks for.
        fps: Frames per second.

    Raises:
        ConfigError: Another file type.
        ShapeError: No frames, frames of different sizes, or not uint8 RGB.
        SaveError: The file could not be written.
    """
    if Path(path).suffix != ".mp4":
        raise ConfigError(f"A video's name must end in .mp4, got {path}.")
    atomic_write(path, encode_video(frames, fps))


def encode_video(frames: Iterable[np.ndarray], fps: int = 10) -> bytes:
    """Return the bytes of the mp4; arguments and errors as in `write_video`."""
    if fps < 1:
        raise ConfigError(f"A video needs at least 1 frame per second, got {fps}.")
    rest = iter(frames)
    first = next(rest, None)
    if first is None:
        raise ShapeError("A video needs at least one frame, got none.")
    size = _check_frame(first, None)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "preset": "medium"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
        stream.pix_fmt = "yuv420p"
        for index, pixels in enumerate(chain([first], rest)):
            _check_frame(pixels, size)
            even = np.pad(pixels, ((0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def film_strip(
    rows: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str],
    successes: Sequence[Sequence[bool]] | None = None,
    hold: int = 8,
) -> np.ndarray:
    """Put episodes side by side: a row for each policy, a column for each layout.

    An episode that is over stays on its last frame and, where `successes` is given, gains a green or a red
    border.

    Args:
        rows: For each policy, its episodes' frames, uint8 `[t, h, w, 3]` of any lengths and one size.
        labels: A name for each row.
        successes: Whether each episode succeeded.
        hold: Frames for which the last image of all stays.

    Returns:
        uint8 `[t, height, width, 3]`.

    Raises:
        ShapeError: Rows of different lengths, or episodes of different image sizes.
    """
    sizes = {clip.shape[1:] for row in rows for clip in row}
    if len(sizes) != 1 or len({len(row) for row in rows}) != 1 or len(rows) != len(labels):
        raise ShapeError(
            f"A film strip needs rows of equal length, one label each, and one image size; got rows of "
            f"{[len(row) for row in rows]}, {len(labels)} labels and sizes {sorted(sizes)}."
        )
    height, width, _ = sizes.pop()
    gap = max(3, width // 24)
    rim = max(1, gap // 3)
    headers = [_header(label, len(rows[0]) * (width + gap) + gap, max(14, height // 9)) for label in labels]
    total = max(len(clip) for row in rows for clip in row) + hold
    images = []
    for t in range(total):
        bands = []
        for index, (header, row) in enumerate(zip(headers, rows, strict=True)):
            band = np.full((height + 2 * gap, header.shape[1], 3), PAPER, dtype=np.uint8)
            for column, clip in enumerate(row):
                left = gap + column * (width + gap)
                if successes is not None and t >= len(clip) - 1:
                    colour = GOOD if successes[index][column] else BAD
                    band[gap - rim : gap + height + rim, left - rim : left + width + rim] = colour
                band[gap : gap + height, left : left + width] = clip[min(t, len(clip) - 1)]
            bands += [header, band]
        images.append(np.concatenate(bands))
    return np.stack(images)


def _header(text: str, width: int, height: int) -> np.ndarray:
    image = Image.new("RGB", (width, height), PAPER)
    font = ImageFont.load_default(size=0.62 * height)
    ImageDraw.Draw(image).text((height // 3, height // 2), text, fill=INK, font=font, anchor="lm")
    return np.array(image)


def _check_frame(pixels: np.ndarray, size: tuple[int, int] | None) -> tuple[int, int]:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ShapeError(f"Frames must be uint8 [h, w, 3], got {pixels.dtype} {list(pixels.shape)}.")
    if size is not None and pixels.shape[:2] != size:
        raise ShapeError(f"All frames must be {list(size)} as the first one, got {list(pixels.shape[:2])}.")
    return pixels.shape[0], pixels.shape[1]
