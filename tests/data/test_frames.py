import json
import pickle
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.make import CAMERAS, draw_code, read_code, write_json, write_mp4
from tests.data.test_images import png
from vla.data import LeRobotDataset
from vla.data.video import VideoReader
from vla.errors import ConfigError, DatasetError


@pytest.fixture
def decoded(monkeypatch):
    """Every (file, time) that is decoded."""
    calls = []
    frame = VideoReader.frame

    def counting(self, seconds, tolerance_s=None):
        calls.append((self.path, round(seconds, 4)))
        return frame(self, seconds, tolerance_s)

    monkeypatch.setattr(VideoReader, "frame", counting)
    return calls


def test_cached_frames_are_decoded_once(tiny, decoded):
    dataset = LeRobotDataset(tiny, action_horizon=2, cache_frames=True)
    assert decoded == []  # opening is fast
    for _ in range(2):
        for i in (28, 3, 11, 0, 5):
            item = dataset[i]
            code = (int(item["episode_index"]), int(item["frame_index"]))
            assert read_code(item[CAMERAS[0]]) == (*code, 0)
            assert read_code(item[CAMERAS[1]]) == (*code, 1)
    assert len(decoded) == len(set(decoded)) == 2 * (5 + 12 + 9)
    dataset.preload()
    assert len(decoded) == len(set(decoded)) == 2 * 29


def test_preload_reports_progress_and_needs_the_cache(tiny):
    seen = []
    LeRobotDataset(tiny, action_horizon=2, cache_frames=True).preload(lambda *done: seen.append(done))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(ConfigError, match="needs cache_frames=True"):
        LeRobotDataset(tiny, action_horizon=2).preload()


def test_a_cached_frame_is_the_callers_own(tiny):
    dataset = LeRobotDataset(tiny, action_horizon=2, cache_frames=True)
    dataset[4][CAMERAS[0]].zero_()
    assert read_code(dataset[4][CAMERAS[0]]) == (0, 4, 0)


def test_the_cache_is_not_sent_to_other_processes(tiny):
    dataset = LeRobotDataset(tiny, action_horizon=2, cache_frames=True)
    size = len(pickle.dumps(dataset))
    dataset.preload()
    assert len(pickle.dumps(dataset)) == size
    assert read_code(pickle.loads(pickle.dumps(dataset))[28][CAMERAS[1]]) == (3, 8, 1)


def test_a_frame_that_cannot_be_decoded_is_named(tiny_datasets, tmp_path):
    root = shutil.copytree(tiny_datasets["v2.1"], tmp_path / "copy")
    video = root / f"videos/chunk-000/{CAMERAS[1]}/episode_000001.mp4"
    dataset = LeRobotDataset(root, action_horizon=2)
    shutil.copy(root / f"videos/chunk-000/{CAMERAS[1]}/episode_000000.mp4", video)  # 5 frames, not 12
    read_code(dataset[5 + 4][CAMERAS[1]])
    with pytest.raises(
        DatasetError, match=rf"{CAMERAS[1]}, episode 1, frame 5: .*episode_000001.mp4 has no frame"
    ):
        dataset[5 + 5]


def test_frames_of_another_size(tiny_datasets, tmp_path):
    root = shutil.copytree(tiny_datasets["v2.1"], tmp_path / "copy")
    dataset = LeRobotDataset(root, action_horizon=2)
    video = root / f"videos/chunk-000/{CAMERAS[0]}/episode_000000.mp4"  # changed since it was opened
    write_mp4(video, [draw_code(0, i, 0, 64, 64) for i in range(5)], 10)
    with pytest.raises(
        DatasetError, match=r"frame 0: decoded \[64, 64\] pixels, but meta/info.json says \[32, 64\]"
    ):
        dataset[0]


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_pictures_in_parquet(tiny_datasets, tmp_path, version):
    """The same dataset with one camera moved from mp4 into the rows."""
    root = shutil.copytree(tiny_datasets[version], tmp_path / "copy")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][CAMERAS[0]]["dtype"] = "image"
    write_json(root / "meta/info.json", info)
    for path in (root / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        codes = zip(table["episode_index"].to_pylist(), table["frame_index"].to_pylist(), strict=True)
        column = pa.array([{"bytes": png(draw_code(e, i, 0)), "path": None} for e, i in codes])
        pq.write_table(table.append_column(CAMERAS[0], column), path, row_group_size=7)
    dataset = LeRobotDataset(root, action_horizon=2, episodes=[3, 1])
    for i in range(len(dataset)):
        item = dataset[i]
        place = (int(item["episode_index"]), int(item["frame_index"]))
        assert read_code(item[CAMERAS[0]]) == (*place, 0)
        assert read_code(item[CAMERAS[1]]) == (*place, 1)
