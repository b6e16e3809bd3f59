"""LeRobot datasets as tables of `datasets`, and back: the same samples, bit for bit."""

import datasets
import numpy as np
import pytest
import torch

from tests.data.conftest import LENGTHS
from tests.data.hf.images import store_images
from tests.data.make import CAMERAS, low_dim, make_dataset, read_code, response_of, split_columns, task_of
from tests.folders import files_of
from vla.data import HuggingFaceDataset, LeRobotDataset, compute_statistics, open_dataset
from vla.errors import ConfigError, DatasetError
from vla.types import Window

FRAMES = [(episode, frame) for episode, length in enumerate(LENGTHS) for frame in range(length)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A LeRobot dataset with one camera stored as images in parquet, one in videos. Read only."""
    root = tmp_path_factory.mktemp("stored") / "x"
    make_dataset(root, length=LENGTHS, episodes=len(LENGTHS))
    store_images(root, CAMERAS[0])
    return root


def same_item(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert (value.dtype, value.shape) == (other[key].dtype, other[key].shape)
            assert value.equal(other[key]), key
        else:
            assert value == other[key]


def same(one, other):
    """Whether two datasets have the same items, frame rate and statistics, to the bit."""
    assert (len(one), one.info.fps, one.tasks) == (len(other), other.info.fps, other.tasks)
    for index in range(len(one)):
        same_item(one[index], other[index])
    assert compute_statistics(one).features == compute_statistics(other).features
    return True


def test_columns_and_rows_of_a_table(recorded):
    table = recorded.to_datasets()
    kinds = {key: str(feature) for key, feature in table.features.items()}
    assert kinds["observation.state"] == kinds["action"] == "List(Value('float32'), length=3)"
    assert [kinds[key] for key in ("timestamp", "frame_index", "response", "task")] == [
        f"Value('{name}')" for name in ("float32", "int64", "string", "string")
    ]
    assert all(isinstance(table.features[camera], datasets.Video) for camera in CAMERAS)
    plain = table.remove_columns(CAMERAS)
    assert len(plain) == len(FRAMES)
    for row, (episode, frame) in zip(plain, FRAMES, strict=True):
        state, action = low_dim(episode, LENGTHS[episode], 3, 3)
        assert np.array_equal(np.float32(row["observation.state"]), state[frame])
        assert np.array_equal(np.float32(row["action"]), action[frame])
        assert (row["episode_index"], row["frame_index"]) == (episode, frame)
        assert (row["task"], row["response"]) == (task_of(episode), response_of(episode, frame))
        assert row["timestamp"] == pytest.approx(frame / 10)


def test_a_video_is_a_path_and_a_time_and_decoded_access_names_torchcodec(recorded):
    table = recorded.to_datasets()
    with pytest.raises(ImportError, match="torchcodec"):
        table[0]
    undecoded = table.cast_column(CAMERAS[0], datasets.Video(decode=False)).remove_columns(CAMERAS[1])
    for index, (episode, _) in enumerate(FRAMES):
        row, span = undecoded[index], recorded.episodes[episode].videos[CAMERAS[0]]
        assert row[CAMERAS[0]] == {"bytes": None, "path": str(recorded.root / span.path)}
        assert row[f"{CAMERAS[0]}.from_timestamp"] == span.start


def test_frames_of_videos_as_images(recorded, datasets_cache):
    before = files_of(recorded.root)
    table = recorded.to_datasets(videos="images")
    assert all(isinstance(table.features[camera], datasets.Image) for camera in CAMERAS)
    seen = [tuple(read_code(table[index][camera]) for camera in CAMERAS) for index in (0, 7, len(FRAMES) - 1)]
    assert seen == [((e, f, 0), (e, f, 1)) for e, f in (FRAMES[0], FRAMES[7], FRAMES[-1])]
    written = list(datasets_cache.rglob("*.arrow"))
    assert [str(datasets_cache) in file["filename"] for file in table.cache_files] == [True] * len(written)
    assert files_of(recorded.root) == before


def test_streamed_rows_are_decoded_as_they_come(recorded, datasets_cache):
    stream = recorded.to_datasets(streaming=True)
    assert isinstance(stream, datasets.IterableDataset)
    assert stream.num_shards == len(LENGTHS)
    rows = list(stream)
    assert [read_code(row[CAMERAS[1]]) for row in rows] == [(e, f, 1) for e, f in FRAMES]
    assert [row["task"] for row in rows] == [task_of(e) for e, _ in FRAMES]
    assert not list(datasets_cache.rglob("*.arrow"))
    with pytest.raises(ImportError, match="torchcodec"):
        next(iter(recorded.to_datasets(streaming=True, videos="video")))


def test_a_selection_is_what_is_returned(recorded):
    chosen = LeRobotDataset(recorded.root, action_horizon=2, episodes=[3, 1], cameras=[CAMERAS[1]])
    table = chosen.to_datasets(videos="images")
    assert CAMERAS[0] not in table.column_names
    assert table["episode_index"][:] == [3] * LENGTHS[3] + [1] * LENGTHS[1]
    assert read_code(table[0][CAMERAS[1]]) == (3, 0, 1)


def test_another_form_of_videos_is_refused(recorded):
    with pytest.raises(ConfigError, match="videos must be 'video' or 'images', got 'frames'"):
        recorded.to_datasets(videos="frames")


@pytest.mark.parametrize("videos", ["video", "images"])
def test_saved_to_disk_and_opened_again_it_is_the_same(recorded, tmp_path, videos):
    recorded.to_datasets(videos=videos).save_to_disk(tmp_path / "saved")
    before = files_of(tmp_path / "saved")
    found = open_dataset(f"hf:{tmp_path / 'saved'}", action_horizon=4)
    assert same(recorded, found)
    past = Window(4, state=(-2, 0), images=(-1, 0))
    one = LeRobotDataset(recorded.root, window=past, episodes=[2, 0])
    other = open_dataset(f"hf:{tmp_path / 'saved'}", window=past, episodes=[2, 0])
    assert same(one, other)
    assert files_of(tmp_path / "saved") == before


def test_as_parquet_and_from_memory_in_any_order_it_is_the_same(recorded, tmp_path):
    table = recorded.to_datasets(videos="images")
    table.shuffle(seed=3).to_parquet(tmp_path / "rows" / "train.parquet")
    found = open_dataset(f"hf:{tmp_path / 'rows'}", action_horizon=4)
    file = open_dataset(f"hf:{tmp_path / 'rows/train.parquet'}", action_horizon=4)
    in_memory = HuggingFaceDataset(table, action_horizon=4)
    assert same(recorded, found)
    assert found.fingerprint == file.fingerprint == in_memory.fingerprint != recorded.fingerprint
    videos = recorded.to_datasets()
    videos.to_parquet(tmp_path / "videos" / "train.parquet")
    assert same(recorded, open_dataset(f"hf:{tmp_path / 'videos'}", action_horizon=4))


def test_images_in_parquet_are_handed_on_as_stored(stored, tmp_path):
    dataset = LeRobotDataset(stored, action_horizon=4)
    table = dataset.to_datasets(videos="images")
    raw = table.cast_column(CAMERAS[0], datasets.Image(decode=False))
    kept = datasets.load_dataset("parquet", data_files=sorted(map(str, stored.glob("data/*/*.parquet"))))[
        "train"
    ]
    kept = kept.cast_column(CAMERAS[0], datasets.Image(decode=False))
    assert [one["bytes"] for one in raw[CAMERAS[0]]] == [one["bytes"] for one in kept[CAMERAS[0]]]
    table.save_to_disk(tmp_path / "saved")
    assert same(dataset, open_dataset(f"hf:{tmp_path / 'saved'}", action_horizon=4))
    mixed = dataset.to_datasets()
    assert [type(mixed.features[camera]) for camera in CAMERAS] == [datasets.Image, datasets.Video]
    assert same(dataset, HuggingFaceDataset(mixed, action_horizon=4))


def test_changed_images_are_not_answered_from_the_cache(tmp_path):
    make_dataset(tmp_path / "x", length=3, episodes=1)
    store_images(tmp_path / "x", *CAMERAS)
    before = LeRobotDataset(tmp_path / "x", action_horizon=2)
    first = before.to_datasets()[0][CAMERAS[0]]
    store_images(tmp_path / "x", *CAMERAS, shift=1)
    after = LeRobotDataset(tmp_path / "x", action_horizon=2)
    assert read_code(first) == (0, 0, 0)
    assert read_code(after.to_datasets()[0][CAMERAS[0]]) == (1, 0, 0)


def test_joined_columns_stay_apart_and_are_joined_again(tmp_path):
    make_dataset(tmp_path / "x", length=4, episodes=2, cameras=[])
    split_columns(tmp_path / "x", {"observation.state": {"s.arm": 2, "s.hand": 1}})
    keys = {"state_key": ["s.arm", "s.hand"], "action_horizon": 2}
    dataset = LeRobotDataset(tmp_path / "x", **keys)
    table = dataset.to_datasets()
    assert {"s.arm", "s.hand"} < set(table.column_names)
    found = HuggingFaceDataset(table, **keys)
    assert found.state_dim == 3
    assert same(dataset, found)
    assert (
        HuggingFaceDataset(table, **keys | {"state_key": ["s.hand", "s.arm"]}).fingerprint
        != found.fingerprint
    )


def test_an_image_that_cannot_be_read(stored, tmp_path):
    make_dataset(tmp_path / "x", length=3, episodes=1)
    dataset = LeRobotDataset(tmp_path / "x", action_horizon=2)
    for video in (tmp_path / "x").rglob("*.mp4"):
        video.write_bytes(video.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"cannot be made a table: .*mp4"):
        dataset.to_datasets(videos="images")


def test_a_table_gives_its_rows_back(recorded):
    table = recorded.to_datasets(videos="images")
    found = HuggingFaceDataset(table, action_horizon=3, episodes=[2])
    rows = found.to_datasets()
    assert rows.features == table.features
    assert rows["frame_index"][:] == list(range(LENGTHS[2]))
    assert read_code(rows[1][CAMERAS[0]]) == (2, 1, 0)
    assert read_code(next(iter(found.to_datasets(streaming=True)))[CAMERAS[0]]) == (2, 0, 0)
    with pytest.raises(ConfigError, match=r"the columns of the datasets.Dataset stay as they are"):
        found.to_datasets(videos="images")
