"""Metadata that contradict the files, each refused at opening with the files unchanged."""

import io
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.make import (
    CAMERAS,
    draw_code,
    edit_info,
    edit_tables,
    make_dataset,
    read_code,
    set_column,
    write_mp4,
)
from tests.folders import files_of
from vla.data import LeRobotDataset
from vla.data.lerobot.fields import NAMED_DEPTH
from vla.errors import DatasetError

N = 6
TOP = CAMERAS[0]


@pytest.fixture(scope="module", params=["v3.0", "v2.1"])
def clean(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean") / "x"
    return make_dataset(folder, request.param, episodes=2, length=N, cameras=[TOP])


@pytest.fixture
def root(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "copy")


def refused(root, match, **arguments):
    before = files_of(root)
    with pytest.raises(DatasetError, match=match):
        LeRobotDataset(root, action_horizon=2, **arguments)
    assert files_of(root) == before


def opened(root, **arguments):
    before = files_of(root)
    dataset = LeRobotDataset(root, action_horizon=2, **arguments)
    for i in range(len(dataset)):
        dataset[i]
    assert files_of(root) == before
    return dataset


# Timestamps


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (lambda i: 0.0, "episode 0 do not rise by 0.1000 s .* frame 0 has 0.0000 s, frame 1 has 0.0000"),
        (lambda i: i // 2 * 0.2, "episode 0 do not rise by .* frame 0 has 0.0000 s, frame 1 has 0.0000 s"),
        (lambda i: (N - i) * 0.1, "do not rise by .*fps = 10"),
        (lambda i: i * 100.0, "do not rise by .*frame 1 has 100.0000 s"),
        (lambda i: i / 12, r"fps = 10, but the timestamps of episode 0 rise as at 12 frames per second"),
        (lambda i: i * 0.2, "do not rise by .*fps = 10 in meta/info.json"),
        (lambda i: 1.7e9 + i * 0.1, "do not rise"),
        (lambda i: i * 0.1 + (0.3 if i > 3 else 0), "frame 3 has 0.3000 s, frame 4 has 0.7000 s"),
    ],
)
@pytest.mark.parametrize("cameras", [None, []])
def test_timestamps_that_do_not_rise_by_one_step(root, times, message, cameras):
    set_column(root, "timestamp", lambda values: [times(i % N) for i in range(len(values))])
    refused(root, message, cameras=cameras)


@pytest.mark.parametrize("fps", [5, 12, 30, 0.1, 1000])
def test_a_frame_rate_that_the_rows_contradict(root, fps):
    edit_info(root, lambda info: info.update(fps=fps))
    refused(root, "fps = ")


def test_timestamps_on_the_other_side_of_the_video(root):
    set_column(root, "timestamp", lambda values: [t + 30 for t in values])
    refused(root, r"'observation.images.top' of episode .* the last frame of the video .* too short")
    set_column(root, "timestamp", lambda values: [t - 60 for t in values])
    refused(root, r"begins at -\d+.* but the video begins at 0.0000 s only")
    assert len(opened(root, cameras=[])) == 2 * N


def test_irregular_timestamps_without_video_are_fine(root):
    """A robot's own clock trembles."""
    rng = np.random.default_rng(0)
    set_column(root, "timestamp", lambda values: [t + rng.uniform(-0.02, 0.02) for t in values])
    opened(root, cameras=[])
    refused(root, "is out of step|between two frames")
    opened(root, tolerance_s=0.049)


# Sizes


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([64, 32, 3], ["height", "width", "channels"]),
        ([32, 64, 3], ["width", "height", "channels"]),
        ([3, 32, 64], ["height", "width", "channels"]),
        ([3, 64, 32], None),
        ([48, 64, 3], None),
        ([32, 64, 3], ["channels", "height", "width"]),
    ],
)
def test_sizes_that_the_video_contradicts(root, shape, names):
    edit_info(root, lambda info: info["features"][TOP].update(shape=shape, names=names))
    refused(
        root, r"images are 32 high and 64 wide, but the shape of 'observation.images.top' in meta/info.json"
    )


@pytest.mark.parametrize(
    ("shape", "names"),
    [([64, 32, 3], ["width", "height", "channels"]), ([3, 32, 64], ["channel", "rows", "cols"])],
)
def test_sizes_in_another_order_are_read_by_their_names(root, shape, names):
    edit_info(root, lambda info: info["features"][TOP].update(shape=shape, names=names))
    assert read_code(opened(root)[3][TOP]) == (0, 3, 0)


# Videos


def rewrite_video(root, frames, start=0, **options):
    """Replace the (first) video by one that shows some frames only, from a time on."""
    path = sorted(root.rglob("*.mp4"))[0]
    pixels = [draw_code(i // N, i % N, 0) for i in frames]
    if start == 0:
        write_mp4(path, pixels, 10, **options)
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        stream.codec_context.time_base = 1 / stream.codec_context.framerate
        for i, image in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = i + start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_videos_that_end_early(root, missing):
    whole = 2 * N if (root / "meta/tasks.parquet").exists() else N
    rewrite_video(root, range(whole - missing))
    refused(root, rf"the last frame of the video is shown at .* the video is {missing} frames too short")
    if whole == 2 * N:
        opened(root, episodes=[0])  # whose part is there


def test_videos_that_begin_late(root):
    whole = 2 * N if (root / "meta/tasks.parquet").exists() else N
    rewrite_video(root, range(whole), start=3)
    refused(root, r"begins at 0.0000 s, but the video begins at 0.3000 s only: it is late")


def test_long_groups_and_b_frames_are_fine(root):
    whole = 2 * N if (root / "meta/tasks.parquet").exists() else N
    rewrite_video(root, range(whole), g="250", bf="3")
    assert [read_code(item[TOP])[:2] for item in map(opened(root).__getitem__, range(N))] == [
        (0, i) for i in range(N)
    ]


def test_a_video_of_sound_or_nonsense(root):
    path = sorted(root.rglob("*.mp4"))[0]
    path.write_bytes(b"\0\0\0\x08moov")
    refused(root, rf"{path.name} (cannot be opened as a video|holds no video)")


def edit_episodes(root, **columns):
    def change(table):
        for key, values in columns.items():
            name = f"videos/{TOP}/{key}"
            table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.float64()))
        return table

    edit_tables(root, change, "meta/episodes")


def test_parts_of_a_video(tmp_path):
    root = make_dataset(tmp_path / "x", episodes=2, length=N, cameras=[TOP])
    edit_episodes(root, from_timestamp=[0.0, 0.0])
    refused(root, r"episodes 0 and 1 at one place in videos/.*from_timestamp")
    refused(root, r"at one place", episodes=[1])  # also where one of them alone is read
    edit_episodes(root, from_timestamp=[0.0, 0.65], to_timestamp=[0.6, 1.3])
    refused(root, r"episode 1 begins at 0.6500 s, between two frames|episode 1 .* is out of step")
    edit_episodes(root, from_timestamp=[0.0, 0.6], to_timestamp=[0.2, 1.2])
    refused(root, r"episode 0 ends at 0.5000 s, outside its part of the file, which ends at 0.2000 s")
    edit_episodes(root, from_timestamp=[0.0, float("nan")], to_timestamp=[0.6, 1.2])
    refused(root, r"'from_timestamp' must be a number")
    edit_episodes(root, from_timestamp=[0.0, 0.6], to_timestamp=[0.6, 1.2])
    assert read_code(opened(root)[N + 2][TOP]) == (1, 2, 0)


def test_a_file_of_many_episodes_per_video_without_a_place(tmp_path):
    root = make_dataset(tmp_path / "x", episodes=2, length=N, cameras=CAMERAS)
    edit_tables(root, lambda t: t.drop_columns([f"videos/{TOP}/file_index"]), "meta/episodes")
    refused(root, rf"does not say where the videos of '{TOP}' are")
    assert opened(root, cameras=[CAMERAS[1]]).cameras == (CAMERAS[1],)


# Depth


def encode(image, format):
    out = io.BytesIO()
    image.save(out, format)
    return {"bytes": out.getvalue(), "path": None}


DEPTHS = {
    "16-bit PNG": lambda: encode(Image.fromarray(np.full((32, 64), 1234, np.uint16)), "PNG"),
    "float TIFF": lambda: encode(Image.fromarray(np.full((32, 64), 1.234, np.float32)), "TIFF"),
    "32-bit TIFF": lambda: encode(Image.fromarray(np.full((32, 64), 70000, np.int32)), "TIFF"),
}


def add_images(root, key, image, about=None):
    """Store one image for every row, as a feature of dtype image."""
    edit_tables(root, lambda table: table.append_column(key, pa.array([image] * len(table))))
    entry = {"dtype": "image", "shape": [32, 64, 1], "names": ["height", "width", "channels"]}
    edit_info(root, lambda info: info["features"].update({key: entry | ({"info": about} if about else {})}))


@pytest.mark.parametrize("about", [None, {"is_depth_map": True}, {"is_depth_map": False}])
@pytest.mark.parametrize("kind", list(DEPTHS))
def test_depth_images_are_no_cameras(root, kind, about, caplog):
    add_images(root, "observation.images.range", DEPTHS[kind](), about)
    with caplog.at_level(logging.WARNING):
        dataset = opened(root)
    assert dataset.cameras == dataset.info.cameras == (TOP,)
    assert "observation.images.range" not in dataset[0]
    assert "'observation.images.range' records depth, not colours" in caplog.text
    refused(
        root,
        r"'observation.images.range' records depth.*cannot be a camera",
        cameras=["observation.images.range"],
    )


@pytest.mark.parametrize(
    "about", [{"video.is_depth_map": True}, {"is_depth_map": True}, {"video.pix_fmt": "gray12le"}]
)
def test_depth_videos_by_their_description(root, about, caplog):
    edit_info(root, lambda info: info["features"][TOP].update(info=about))
    with caplog.at_level(logging.WARNING):
        assert opened(root).cameras == ()
    assert f"'{TOP}' records depth" in caplog.text
    refused(root, "records depth", cameras=[TOP])


@pytest.mark.parametrize("pixels", ["gray12le", "gray10le"])
def test_depth_videos_by_their_pixels(tmp_path, pixels):
    root = make_dataset(tmp_path / "x", "v2.1", episodes=1, length=N, cameras=CAMERAS)
    path = root / f"videos/chunk-000/{CAMERAS[1]}/episode_000000.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=10, options={"x265-params": "log-level=none"})
        stream.height, stream.width, stream.pix_fmt = 32, 64, pixels
        for i in range(N):
            frame = av.VideoFrame(64, 32, pixels)
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    dataset = opened(root)
    assert dataset.cameras == dataset.info.cameras == (TOP,)
    assert "one channel of more than 8 bits" in dataset.info.features[CAMERAS[1]].depth
    refused(root, f"'{CAMERAS[1]}' records depth", cameras=CAMERAS)


def test_a_camera_called_depth_is_left_out_unless_asked_for(root):
    key = "observation.images.front_depth"
    add_images(root, key, encode(Image.fromarray(draw_code(0, 1, 2)), "PNG"))
    assert opened(root).cameras == (TOP,)
    assert opened(root).info.features[key].depth == NAMED_DEPTH
    assert read_code(opened(root, cameras=[key])[0][key]) == (0, 1, 2)
    edit_info(root, lambda info: info["features"][key].update(info={"is_depth_map": False}))
    assert opened(root).cameras == (TOP, key)


def test_images_of_another_size_or_none(root):
    add_images(root, "observation.images.extra", encode(Image.new("RGB", (64, 48)), "PNG"))
    refused(root, r"images are 48 high and 64 wide, but the shape of 'observation.images.extra'")
    edit_tables(root, lambda table: table.drop_columns(["observation.images.extra"]))
    refused(root, r"has no column 'observation.images.extra' with the camera's images")
    assert opened(root, cameras=[TOP]).cameras == (TOP,)


def test_an_image_that_turns_into_depth_later(tmp_path):
    root = make_dataset(tmp_path / "x", "v2.1", episodes=1, length=N, cameras=())
    colour, depth = encode(Image.new("RGB", (64, 32)), "PNG"), DEPTHS["16-bit PNG"]()
    add_images(root, "observation.images.a", colour)
    set_column(root, "observation.images.a", lambda values: [colour] * (N - 1) + [depth])
    dataset = LeRobotDataset(root, action_horizon=1)
    assert dataset[0]["observation.images.a"].shape == (3, 32, 64)
    with pytest.raises(DatasetError, match=r"frame 5: .*row 5: 'observation.images.a' shows distances"):
        dataset[N - 1]


# Threads


@pytest.mark.parametrize("cache_frames", [False, True])
def test_items_from_several_threads_are_right(clean, cache_frames):
    dataset = LeRobotDataset(clean, action_horizon=2, cache_frames=cache_frames, open_videos=1)
    rng = np.random.default_rng(0)
    asked = [rng.permutation(2 * N).tolist() * 2 for _ in range(4)]

    def read(indices):
        return [read_code(dataset[i][TOP]) for i in indices]

    with ThreadPoolExecutor(4) as pool:
        for indices, got in zip(asked, pool.map(read, asked), strict=True):
            assert got == [(i // N, i % N, 0) for i in indices]


def test_images_in_parquet_from_several_threads(tmp_path):
    root = make_dataset(tmp_path / "x", "v2.1", episodes=6, length=2, cameras=())
    key = "observation.images.a"
    for episode, path in enumerate(sorted((root / "data").rglob("*.parquet"))):
        images = [encode(Image.fromarray(draw_code(episode, i, 0)), "PNG") for i in range(2)]
        pq.write_table(pq.read_table(path).append_column(key, pa.array(images)), path)
    entry = {"dtype": "image", "shape": [32, 64, 3], "names": None}
    edit_info(root, lambda info: info["features"].update({key: entry}))
    dataset = LeRobotDataset(root, action_horizon=1)
    indices = np.random.default_rng(0).integers(0, 12, 400).tolist()
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: read_code(dataset[i][key]), indices))
    assert got == [(i // 2, i % 2, 0) for i in indices]


def test_info_tells_what_is_left_out(root, capsys):
    from vla.cli import main

    add_images(root, "observation.images.range", DEPTHS["16-bit PNG"]())
    assert main(["info", str(root), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["cameras"] == [TOP]
    assert about["left_out"]["observation.images.range"].startswith("depth: its pixels")
