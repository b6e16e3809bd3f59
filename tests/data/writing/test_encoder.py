import os

import av
import numpy as np
import pytest

from tests.data.make import draw_code, read_code
from vla.data.writing.encoder import VideoEncoder, stored_format
from vla.errors import ConfigError, ShapeError


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_frames_in_order_each_part_from_a_key_frame(tmp_path, codec):
    encoder = VideoEncoder(tmp_path / "deep/er/x.mp4", 10, 32, 64, codec)
    for first, last in ((0, 3), (3, 8), (8, 70)):
        encoder.append(draw_code(0, i, 1) for i in range(first, last))
    encoder.close()
    assert encoder.num_frames == 70
    assert 0 < encoder.num_bytes <= encoder.path.stat().st_size
    with av.open(str(encoder.path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 10
        frames = [
            (f.time, f.key_frame, read_code(f.to_ndarray(format="rgb24"))) for f in container.decode(stream)
        ]
    assert [code for _, _, code in frames] == [(0, i, 1) for i in range(70)]
    assert [time for time, _, _ in frames] == pytest.approx([i / 10 for i in range(70)])
    keys = [i for i, (_, key, _) in enumerate(frames) if key]
    assert max(np.diff(keys)) <= 2
    if codec == "h264":  # SVT-AV1 keeps its own rhythm
        assert {0, 3, 8} <= set(keys)


def test_lossless_frames_come_back_to_the_bit_at_any_size(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 7, 9, 3), dtype=np.uint8)
    encoder = VideoEncoder(tmp_path / "x.mp4", 10, 7, 9, "lossless")
    encoder.append(frames)
    encoder.close()
    with av.open(str(encoder.path)) as container:
        decoded = list(container.decode(container.streams.video[0]))
    assert (np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]) == frames).all()
    assert {frame.format.name for frame in decoded} == {stored_format("lossless")[1]}
    with pytest.raises(ConfigError, match="at least 2x2 pixels, got 1x9"):
        VideoEncoder(tmp_path / "y.mp4", 10, 1, 9, "lossless")


def test_the_same_frames_give_the_same_bytes(tmp_path):
    for name in "ab":
        encoder = VideoEncoder(tmp_path / name / "x.mp4", 10, 32, 64)
        encoder.append(draw_code(0, i, 1) for i in range(20))
        encoder.close()
    assert (tmp_path / "a/x.mp4").read_bytes() == (tmp_path / "b/x.mp4").read_bytes()


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="Linux's scheduler")
def test_encoding_leaves_the_scheduling_alone(tmp_path):
    before = os.sched_getscheduler(0)
    encoder = VideoEncoder(tmp_path / "x.mp4", 10, 32, 64, "av1")
    encoder.append(draw_code(0, i, 1) for i in range(3))
    assert os.sched_getscheduler(0) == before  # as root, SVT-AV1 would have changed it
    encoder.close()


def test_bad_arguments(tmp_path):
    with pytest.raises(ConfigError, match=r"one of .* got 'vp9'"):
        VideoEncoder(tmp_path / "x.mp4", 10, 32, 64, "vp9")
    with pytest.raises(ConfigError, match="even sizes, got 33x64"):
        VideoEncoder(tmp_path / "x.mp4", 10, 33, 64)
    encoder = VideoEncoder(tmp_path / "x.mp4", 10, 32, 64)
    for frame in (np.zeros((32, 32, 3), np.uint8), np.zeros((32, 64, 3), np.float32)):
        with pytest.raises(ShapeError, match=r"must be uint8 \[32, 64, 3\]"):
            encoder.append([frame])
    encoder.close()
