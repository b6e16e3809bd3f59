"""Films come back from a decoder as they went in."""

import io

import av
import numpy as np
import pytest

from vla.atomic import SaveError
from vla.errors import ConfigError, ShapeError
from vla.eval.video import BAD, GOOD, encode_video, film_strip, write_video


def clip(length, height=48, width=64, seed=0):
    """Smooth images whose brightness tells their number."""
    ramp = np.linspace(0, 60, width)[None, :, None] + np.arange(length)[:, None, None, None] * 15.0
    return np.broadcast_to(ramp + np.zeros((1, height, 1, 3)), (length, height, width, 3)).astype(np.uint8)


def decode(data):
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = [
            (float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in container.decode(stream)
        ]
        return stream.codec_context.name, stream.codec_context.pix_fmt, frames


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_frames_and_times_survive(size):
    frames = clip(9, *size)
    codec, pixel_format, decoded = decode(encode_video(iter(frames), fps=5))
    assert (codec, pixel_format) == ("h264", "yuv420p")
    np.testing.assert_allclose([time for time, _ in decoded], np.arange(9) / 5, atol=1e-6)
    assert decoded[0][1].shape == (48, 64, 3)
    for (_, found), frame in zip(decoded, frames, strict=True):
        assert np.abs(found[: size[0], : size[1]].astype(int) - frame).mean() < 3


def test_written_in_one_step(tmp_path):
    path = tmp_path / "film.mp4"
    write_video(path, clip(3))
    before = path.read_bytes()
    with pytest.raises(ShapeError, match=r"All frames must be \[48, 64\] as the first one, got \[32, 64\]"):
        write_video(path, [*clip(3), *clip(1, 32)])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]
    with pytest.raises(SaveError, match=r"nowhere/film\.mp4"):
        write_video(tmp_path / "nowhere" / "film.mp4", clip(1))


def test_errors():
    with pytest.raises(ConfigError, match=r"must end in \.mp4, got film\.avi"):
        write_video("film.avi", clip(1))
    with pytest.raises(ShapeError, match="got none"):
        encode_video([])
    with pytest.raises(ShapeError, match=r"uint8 \[h, w, 3\], got float64"):
        encode_video(clip(1).astype(float))
    with pytest.raises(ConfigError, match="1 frame per second, got 0"):
        encode_video(clip(1), fps=0)


def test_film_strip_holds_finished_episodes_and_frames_them_by_outcome():
    rows = [[clip(3), clip(6)], [clip(2), clip(4)]]
    strip = film_strip(rows, ["one", "two"], [[True, False], [False, True]], hold=2)
    assert len(strip) == 6 + 2
    gap = 3

    def cell(t, row, column):
        header = strip.shape[1] // 2 - 48 - 2 * gap
        top = row * (strip.shape[1] // 2) + header + gap
        left = gap + column * (64 + gap)
        return strip[t, top : top + 48, left : left + 64], tuple(strip[t, top - 1, left + 5])

    for row in range(2):
        for column in range(2):
            frames = rows[row][column]
            for t in range(len(strip)):
                image, border = cell(t, row, column)
                np.testing.assert_array_equal(image, frames[min(t, len(frames) - 1)])
                over = t >= len(frames) - 1
                assert (border in (GOOD, BAD)) == over
                if over:
                    assert border == (GOOD if row == column else BAD)


def test_film_strip_errors():
    with pytest.raises(ShapeError, match=r"rows of \[2, 1\]"):
        film_strip([[clip(1), clip(1)], [clip(1)]], ["a", "b"])
    with pytest.raises(ShapeError, match="one image size"):
        film_strip([[clip(1), clip(1, 32)]], ["a"])
    with pytest.raises(ShapeError, match="1 labels"):
        film_strip([[clip(1)], [clip(1)]], ["a"])
