import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.make import draw_code, read_code, write_mp4
from vla.data import video
from vla.data.video import VideoReader, VideoReaders, check_container
from vla.errors import ConfigError, DatasetError

FPS, LENGTH = 10, 60
CODECS = {
    "h264 every frame a key": ("h264", {"g": "1"}),
    "h264 as recorded": ("h264", {"g": "2"}),
    "h264 long groups, B frames": ("h264", {"g": "250", "bf": "3"}),
    "hevc open groups": ("hevc", {"g": "8", "x265-params": "log-level=none:open-gop=1:keyint=8:bframes=4"}),
    "av1": ("av1", {"g": "2", "crf": "30", "preset": "12"}),
}


@pytest.fixture(scope="module", params=list(CODECS))
def mp4(request, tmp_path_factory):
    codec, options = CODECS[request.param]
    os.environ.setdefault("SVT_LOG", "1")
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    write_mp4(path, [draw_code(7, i, 2) for i in range(LENGTH)], FPS, codec, **options)
    return path


@pytest.fixture(scope="module")
def h264(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    write_mp4(path, [draw_code(7, i, 2) for i in range(LENGTH)], FPS)
    return path


def test_random_access_is_exact_from_the_pixels(mp4):
    reader = VideoReader(mp4)
    for i in np.random.default_rng(0).integers(0, LENGTH, 80).tolist():
        assert read_code(reader.frame(i / FPS)) == (7, i, 2)


def test_sequential_access_is_exact_and_never_seeks(mp4, monkeypatch):
    reader = VideoReader(mp4)
    seeks = []
    seek = reader._seek
    monkeypatch.setattr(reader, "_seek", lambda target: (seeks.append(target), seek(target)))
    assert [read_code(reader.frame(i / FPS))[1] for i in range(LENGTH)] == list(range(LENGTH))
    assert seeks == [0]


@settings(max_examples=25, deadline=None)
@given(order=st.lists(st.integers(0, LENGTH - 1), min_size=1, max_size=12))
def test_any_order_of_requests(h264, order):
    reader = VideoReader(h264)
    assert [read_code(reader.frame(i / FPS))[1] for i in order] == order


def test_times_off_the_grid(h264):
    reader = VideoReader(h264)
    assert read_code(reader.frame(1.00005)) == (7, 10, 2)
    with pytest.raises(
        DatasetError, match=r"no frame at 1.0300 s: the nearest, at 1.0000 s, is 0.0300 s away"
    ):
        reader.frame(1.03)
    # a wider tolerance gives the nearest frame, on either side, whatever was decoded before
    for seconds, frame in ((1.03, 10), (1.07, 11), (1.03, 10), (0.96, 10), (0.94, 9), (5.94, 59)):
        assert read_code(reader.frame(seconds, tolerance_s=0.05))[1] == frame


def test_past_the_end_and_before_the_start(h264):
    reader = VideoReader(h264)
    for _ in range(2):  # the decoder is spent after the first time
        with pytest.raises(DatasetError, match=r"the nearest, at 5.9000 s"):
            reader.frame(LENGTH / FPS)
    with pytest.raises(DatasetError, match=r"the nearest, at 0.0000 s"):
        reader.frame(-0.2)
    assert read_code(reader.frame(0.0))[1] == 0


def test_frames_are_rgb(tmp_path):
    orange = np.full((32, 32, 3), (230, 120, 20), dtype=np.uint8)
    write_mp4(tmp_path / "x.mp4", [orange] * 3, FPS)
    decoded = VideoReader(tmp_path / "x.mp4").frame(0.1)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - orange).max() <= 6


def test_unreadable_files(tmp_path):
    (tmp_path / "text.mp4").write_text("no video" * 100)
    with pytest.raises(DatasetError, match=r"text.mp4 cannot be opened as a video"):
        VideoReader(tmp_path / "text.mp4")
    with pytest.raises(DatasetError, match=r"gone.mp4 cannot be opened"):
        VideoReader(tmp_path / "gone.mp4")
    _write_wav(tmp_path / "sound.wav")
    with pytest.raises(DatasetError, match="holds no video stream"):
        VideoReader(tmp_path / "sound.wav")


def _write_wav(path):
    import wave

    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(b"\0\0" * 8000)


@pytest.mark.parametrize("movflags", ["", "+faststart"])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.97])
def test_truncated_mp4_is_seen_without_decoding(tmp_path, movflags, keep):
    path = tmp_path / "x.mp4"
    with_flags = {"movflags": movflags} if movflags else {}
    _write_with_container_options(path, with_flags)
    check_container(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DatasetError, match=r"x.mp4 is (truncated|not a complete mp4)"):
        check_container(path)


def _write_with_container_options(path, options):
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for i in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw_code(0, i, 0), format="rgb24")))
        container.mux(stream.encode(None))


def test_data_lost_in_the_middle_names_the_time(h264, tmp_path):
    """The index is whole, the frames behind it are not: only decoding can tell."""
    path = tmp_path / "x.mp4"
    content = bytearray(h264.read_bytes())
    start = content.index(b"mdat") + 4
    middle = start + (content.index(b"moov") - start) // 2
    content[middle : content.index(b"moov") - 4] = bytes(content.index(b"moov") - 4 - middle)
    path.write_bytes(content)
    check_container(path)
    reader = VideoReader(path)
    assert read_code(reader.frame(0.3))[1] == 3
    with pytest.raises(DatasetError, match=r"x.mp4 (cannot be decoded|has no frame) at 5.5000 s"):
        reader.frame(5.5)


def test_check_container_other_failures(tmp_path):
    with pytest.raises(DatasetError, match=r"x.mp4 is missing"):
        check_container(tmp_path / "x.mp4")
    (tmp_path / "x.mp4").touch()
    with pytest.raises(DatasetError, match=r"x.mp4 is empty"):
        check_container(tmp_path / "x.mp4")
    (tmp_path / "x.mp4").write_bytes(b"\0\0\0")
    with pytest.raises(DatasetError, match="middle of a box header"):
        check_container(tmp_path / "x.mp4")
    (tmp_path / "x.mp4").write_bytes(b"\0\0\0\x08ftyp\0\0\0\0mdat1234")  # size 0: to the end of the file
    with pytest.raises(DatasetError, match="has no index"):
        check_container(tmp_path / "x.mp4")
    wide = b"\0\0\0\x01mdat" + (18).to_bytes(8, "big") + b"??"  # size 1: the size follows in 64 bits
    (tmp_path / "x.mp4").write_bytes(wide + b"\0\0\0\x08moov")
    check_container(tmp_path / "x.mp4")
    (tmp_path / "x.avi").write_bytes(b"anything")
    check_container(tmp_path / "x.avi")
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    (folder / "x").touch()
    with pytest.raises(DatasetError, match="cannot be read"):
        check_container(folder)


def borrowed(readers, name):
    with readers.borrow(name) as reader:
        return reader


def frame_at(readers, name, seconds):
    with readers.borrow(name) as reader:
        return read_code(reader.frame(seconds))[1]


def test_readers_are_reused_and_bounded(h264, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(video, "VideoReader", lambda path: (opened.append(path.name), VideoReader(path))[1])
    paths = [shutil.copy(h264, tmp_path / f"{i}.mp4") for i in range(3)]
    readers = VideoReaders(capacity=2)
    for i in (0, 1, 0, 1, 2, 1, 0):  # the third closes 0, the last closes 2
        assert frame_at(readers, paths[i], 0.5) == 5
    assert opened == ["0.mp4", "1.mp4", "2.mp4", "0.mp4"]


def test_no_more_files_are_open_than_allowed_and_none_after_closing(h264, tmp_path):
    paths = [shutil.copy(h264, tmp_path / f"{i}.mp4") for i in range(5)]
    readers = VideoReaders(capacity=2)
    for i in (0, 1, 2, 3, 0, 4):
        frame_at(readers, paths[i], 0.5)
        assert len(open_files(tmp_path)) <= 2
    assert open_files(tmp_path) == ["0.mp4", "4.mp4"]
    readers.close()
    assert open_files(tmp_path) == []
    assert frame_at(readers, paths[3], 0.5) == 5
    assert open_files(tmp_path) == ["3.mp4"]
    with pytest.raises(ConfigError, match="open_videos must be at least 1, got 0"):
        VideoReaders(capacity=0)


def open_files(folder):
    """Names of the files in a folder that this process has open, as the system says."""
    links = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return sorted(os.path.basename(link) for link in links if os.path.dirname(link) == str(folder))


def test_a_file_that_cannot_be_found_leaves_the_others_open(h264):
    def locate(name):
        if name == "gone":
            raise DatasetError("gone")
        return h264

    readers = VideoReaders(capacity=1, locate=locate)
    there = borrowed(readers, "there")
    with pytest.raises(DatasetError, match="gone"):
        borrowed(readers, "gone")
    assert borrowed(readers, "there") is there


def test_a_fork_does_not_move_the_files_of_its_parent(h264):
    """Inherited files share their position with the parent's: both read to and fro at the same time."""
    readers, context = VideoReaders(), multiprocessing.get_context("fork")
    frame_at(readers, h264, 0.5)

    def read():
        for i in np.random.default_rng(1).integers(0, LENGTH, 100).tolist():
            assert frame_at(readers, h264, i / FPS) == i
        readers.close()

    children = [context.Process(target=read) for _ in range(2)]
    for child in children:
        child.start()
    for i in np.random.default_rng(2).integers(0, LENGTH, 200).tolist():
        assert frame_at(readers, h264, i / FPS) == i
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]


def test_another_process_opens_its_own(h264, monkeypatch):
    readers = VideoReaders()
    mine = borrowed(readers, h264)
    assert borrowed(pickle.loads(pickle.dumps(readers)), h264) is not mine
    assert borrowed(readers, h264) is mine
    monkeypatch.setattr(os, "getpid", lambda: -7)  # what a fork looks like from the inside
    assert borrowed(readers, h264) is not mine


@pytest.mark.parametrize("capacity", [1, 64])
def test_threads_each_get_their_own_frames(h264, tmp_path, capacity):
    paths = [shutil.copy(h264, tmp_path / f"{i}.mp4") for i in range(2)]
    readers = VideoReaders(capacity)

    def read(seed):
        rng = np.random.default_rng(seed)
        asked = rng.integers(0, LENGTH, 60).tolist()
        return asked, [frame_at(readers, paths[int(rng.integers(2))], i / FPS) for i in asked]

    with ThreadPoolExecutor(4) as pool:
        for asked, got in pool.map(read, range(8)):
            assert got == asked
    assert len(open_files(tmp_path)) <= capacity
    with readers.borrow(paths[0]) as one, readers.borrow(paths[0]) as other:
        assert one is not other
    readers.close()
    assert open_files(tmp_path) == []
