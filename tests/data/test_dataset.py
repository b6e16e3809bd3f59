import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.data.conftest import LENGTHS
from tests.data.make import CAMERAS, low_dim, make_dataset, read_code, response_of, task_of, write_json
from vla.data import LeRobotDataset
from vla.data.lerobot.vectors import frame_times
from vla.errors import ConfigError, DatasetError
from vla.types import Window

H = 4


def test_every_item_from_the_pixels_and_the_written_values(tiny):
    dataset = LeRobotDataset(tiny, action_horizon=H)
    assert len(dataset) == sum(LENGTHS)
    assert (dataset.state_dim, dataset.action_dim) == (3, 3)
    assert dataset.cameras == CAMERAS
    assert dataset.tasks == (task_of(0), task_of(1))
    at = 0
    for e, n in enumerate(LENGTHS):
        assert dataset.episode_slices[e] == slice(at, at + n)
        state, action = low_dim(e, n, 3, 3)
        for i in range(n):
            item = dataset[at]
            assert [read_code(item[key]) for key in CAMERAS] == [(e, i, 0), (e, i, 1)]
            assert np.array_equal(item["observation.state"], state[i])
            assert np.array_equal(item["action"], [action[min(i + k, n - 1)] for k in range(H)])
            assert item["action_is_pad"].tolist() == [i + k >= n for k in range(H)]
            assert item["task"] == task_of(e)
            assert item["response"] == response_of(e, i)
            assert (int(item["episode_index"]), int(item["frame_index"]), int(item["index"])) == (e, i, at)
            assert float(item["timestamp"]) == pytest.approx(i / 10)
            at += 1
    assert dataset[-1]["index"] == at - 1
    for outside in (at, -at - 1):
        with pytest.raises(IndexError, match="is outside"):
            dataset[outside]


def test_types_and_shapes(tiny):
    item = LeRobotDataset(tiny, action_horizon=H)[3]
    kinds = {key: (v.dtype, tuple(v.shape)) for key, v in item.items() if isinstance(v, torch.Tensor)}
    assert kinds == {
        **dict.fromkeys(CAMERAS, (torch.uint8, (3, 32, 64))),
        "observation.state": (torch.float32, (3,)),
        "action": (torch.float32, (H, 3)),
        "action_is_pad": (torch.bool, (H,)),
        "timestamp": (torch.float32, ()),
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), (torch.int64, ())),
    }


PAST = Window(
    H, state=(-2, 0), images=(-1, 0), cameras={CAMERAS[1]: (-4, -3, 0)}, action_start=-2, first_executable=2
)


@pytest.mark.parametrize("cache_frames", [False, True])
def test_a_window_with_a_past(tiny, cache_frames):
    dataset = LeRobotDataset(tiny, window=PAST, cache_frames=cache_frames)
    assert dataset.window is PAST
    assert dataset.action_horizon == H
    offsets = {"observation.state": (-2, 0), CAMERAS[0]: (-1, 0), CAMERAS[1]: (-4, -3, 0)}
    at = 0
    for e, n in enumerate(LENGTHS):
        state, action = low_dim(e, n, 3, 3)
        for i in range(n):
            item = dataset[at]
            for key, own in offsets.items():
                assert item[f"{key}_is_pad"].tolist() == [i + offset < 0 for offset in own]
                assert item[key].shape[0] == len(own)
            for c, key in enumerate(CAMERAS):
                frames = [max(0, i + offset) for offset in offsets[key]]
                assert [read_code(image) for image in item[key]] == [(e, frame, c) for frame in frames]
            assert np.array_equal(item["observation.state"], [state[max(0, i - 2)], state[i]])
            steps = [i + k for k in range(-2, H - 2)]
            assert np.array_equal(item["action"], [action[min(max(0, step), n - 1)] for step in steps])
            assert item["action_is_pad"].tolist() == [not 0 <= step < n for step in steps]
            assert int(item["frame_index"]) == i
            at += 1


def test_without_past_the_items_are_those_of_one_frame(tiny):
    plain, past = LeRobotDataset(tiny, action_horizon=H), LeRobotDataset(tiny, window=PAST)
    assert plain.window == Window(H)
    present = past.without_past()
    assert past.window is PAST
    assert present.fingerprint == plain.fingerprint
    for index in (0, 7, 28):
        ours, theirs = present[index], plain[index]
        assert ours.keys() == theirs.keys()
        for key in (*CAMERAS, "observation.state"):
            assert ours[key].equal(theirs[key])
    same = LeRobotDataset(tiny, window=Window(H), action_horizon=H)[7]
    assert all(
        same[key].equal(value) if isinstance(value, torch.Tensor) else same[key] == value
        for key, value in plain[7].items()
    )


def test_windows_that_do_not_fit(tiny):
    with pytest.raises(ConfigError, match="needs action_horizon, the steps of a chunk, or a window"):
        LeRobotDataset(tiny)
    with pytest.raises(ConfigError, match="action_horizon is 3, but the window has a horizon of 4"):
        LeRobotDataset(tiny, action_horizon=3, window=Window(4))
    with pytest.raises(ConfigError, match=r"names the cameras \['wrist'\].*Window\.rekeyed"):
        LeRobotDataset(tiny, window=Window(4, cameras={"wrist": (-1, 0)}))


def test_a_past_is_read_forward_and_each_frame_once(tiny, monkeypatch):
    dataset = LeRobotDataset(tiny, window=Window(1, images=(-5, -2, -1, 0)))
    asked = []
    get = dataset._frames.get
    monkeypatch.setattr(dataset._frames, "get", lambda *where: asked.append(where) or get(*where))
    dataset[2]
    dataset[1]
    frames = [(frame, camera) for _, frame, camera in asked]
    assert frames == [(frame, camera) for top in (2, 1) for camera in CAMERAS for frame in range(top + 1)]


def test_both_versions_are_the_same_dataset(tiny_datasets):
    new, old = (LeRobotDataset(tiny_datasets[v], action_horizon=H) for v in ("v3.0", "v2.1"))
    assert new.info.tasks == old.info.tasks
    assert (new.info.version, old.info.version) == ("v3.0", "v2.1")
    assert new.fingerprint != old.fingerprint
    for i in range(len(new)):
        a, b = new[i], old[i]
        assert a.keys() == b.keys()
        for key in a.keys() - set(CAMERAS):
            assert a[key].equal(b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key]


def test_items_are_the_callers_own(tiny):
    dataset = LeRobotDataset(tiny, action_horizon=H)
    before = dataset[6]
    spoiled = dataset[6]
    for value in spoiled.values():
        if isinstance(value, torch.Tensor):
            value.zero_()
    after = dataset[6]
    for key, value in before.items():
        assert value.equal(after[key]) if isinstance(value, torch.Tensor) else value == after[key]


def test_selection_of_episodes_and_cameras(tiny):
    dataset = LeRobotDataset(tiny, action_horizon=H, episodes=[3, 1], cameras=[CAMERAS[1]])
    assert [e.index for e in dataset.episodes] == [3, 1]
    assert len(dataset) == 21
    assert CAMERAS[0] not in dataset[0]
    places = [(int(i["episode_index"]), int(i["frame_index"])) for i in (dataset[n] for n in range(21))]
    assert places == [(3, i) for i in range(9)] + [(1, i) for i in range(12)]
    assert [read_code(dataset[n][CAMERAS[1]])[:2] for n in range(21)] == places
    # chunks end with their own episode, not with its neighbour in the selection
    assert dataset[8]["action_is_pad"].tolist() == [False, True, True, True]
    assert dataset.low_dim("episode_index").tolist() == [3] * 9 + [1] * 12


def test_low_dim_touches_no_video(tiny, monkeypatch):
    dataset = LeRobotDataset(tiny, action_horizon=H)
    monkeypatch.setattr(dataset._frames, "get", lambda *_: pytest.fail("decoded a frame"))
    written = [low_dim(e, n, 3, 3) for e, n in enumerate(LENGTHS)]
    state, action = (np.concatenate(parts) for parts in zip(*written, strict=True))
    assert np.array_equal(dataset.low_dim("observation.state"), state)
    assert np.array_equal(dataset.low_dim("action"), action)
    assert dataset.low_dim("timestamp").shape == (29,)
    with pytest.raises(DatasetError, match=r"no numeric column 'actions'.*Did you mean 'action'"):
        dataset.low_dim("actions")


def test_fingerprint_is_of_content_and_selection(tiny, tmp_path):
    def fingerprint(root, **kwargs):
        return LeRobotDataset(root, action_horizon=H, **kwargs).fingerprint

    moved = shutil.copytree(tiny, tmp_path / "moved")
    assert fingerprint(moved) == fingerprint(tiny)
    assert fingerprint(moved, episodes=[0, 1]) != fingerprint(tiny)
    path = sorted((moved / "data").rglob("*.parquet"))[0]
    pq.write_table(pq.read_table(path), path, compression="none")
    assert fingerprint(moved) != fingerprint(tiny)


def _code_of_last(dataset, queue):
    queue.put(read_code(dataset[len(dataset) - 1][CAMERAS[0]]))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_other_processes(tiny, method):
    dataset = LeRobotDataset(tiny, action_horizon=H)
    assert read_code(dataset[28][CAMERAS[0]]) == (
        3,
        8,
        0,
    )  # the decoder is open here before the process starts
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_code_of_last, args=(dataset, queue))
    process.start()
    assert queue.get(timeout=60) == (3, 8, 0)
    process.join(timeout=60)
    assert process.exitcode == 0


def test_pickled(tiny):
    dataset = LeRobotDataset(tiny, action_horizon=H)
    dataset[0]
    assert read_code(pickle.loads(pickle.dumps(dataset))[13][CAMERAS[1]]) == (1, 8, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"action_horizon": 0}, ConfigError, "at least 1, got 0"),
        (
            {"action_horizon": 13},
            DatasetError,
            "action_horizon is 13, but the longest of the 4 episodes .* 12 frames",
        ),
        (
            {"action_horizon": 10, "episodes": [0, 3]},
            DatasetError,
            "the longest of the 2 episodes .* 9 frames",
        ),
        (
            {"episodes": [0, 7, 9]},
            DatasetError,
            r"Episodes \[7, 9\] do not exist in .*: it has \d, from 0 to \d",
        ),
        ({"episodes": []}, DatasetError, "No episode of .* was selected"),
        ({"episodes": [0, 0]}, DatasetError, "selected twice"),
        (
            {"cameras": ["observation.images.topp"]},
            DatasetError,
            "no camera 'observation.images.topp'.*Did you mean",
        ),
        ({"action_key": "actions"}, DatasetError, "no 'actions' for the actions"),
        ({"state_key": "state"}, DatasetError, "no 'state' for the state"),
        ({"state_key": "response"}, DatasetError, "cannot be the state: it is string"),
        ({"state_key": CAMERAS[0]}, DatasetError, "cannot be the state: it is video"),
    ],
)
def test_what_was_asked_for_is_not_there(tiny, arguments, error, message):
    with pytest.raises(error, match=message):
        LeRobotDataset(tiny, **{"action_horizon": H, **arguments})


def test_other_keys(tiny):
    dataset = LeRobotDataset(tiny, action_horizon=H, action_key="observation.state", state_key="action")
    item = dataset[0]
    assert item["observation.state"].shape == (H, 3)
    assert item["action"].shape == (3,)
    assert item["observation.state_is_pad"].shape == (H,)


@pytest.mark.parametrize("suffix", ["mp4", "parquet"])
def test_missing_and_truncated_files_are_found_at_opening(tiny, tmp_path, suffix):
    root = shutil.copytree(tiny, tmp_path / "copy")
    folder = root / ("videos" if suffix == "mp4" else "data")
    path = sorted(folder.rglob(f"*.{suffix}"))[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=f"{path.name} is (truncated|not a)"):
        LeRobotDataset(root, action_horizon=H)
    path.unlink()
    with pytest.raises(DatasetError, match=f"{path.name} is missing"):
        LeRobotDataset(root, action_horizon=H)


def test_nan_is_found_at_opening(tiny, tmp_path):
    root = shutil.copytree(tiny, tmp_path / "copy")
    path = sorted((root / "data").rglob("*.parquet"))[0]
    table = pq.read_table(path)
    state = [list(row) for row in table["observation.state"].to_pylist()]
    state[3][1] = float("nan")
    column = pa.array(state, table["observation.state"].type)
    pq.write_table(
        table.set_column(table.column_names.index("observation.state"), "observation.state", column), path
    )
    with pytest.raises(
        DatasetError, match=rf"{path.name}: 'observation.state' of episode 0, frame 3, dimension 1"
    ):
        LeRobotDataset(root, action_horizon=H)


def test_long_recordings_outlast_float32_timestamps():
    """After half an hour a float32 timestamp is further off than the video tolerance."""
    index = np.arange(0, 30 * 3600, 7)
    stored = (index / 30).astype(np.float32)
    assert np.abs(stored - index / 30).max() > 1e-4
    assert np.array_equal(frame_times(stored, index, 30.0), index / 30)
    irregular = stored.copy()
    irregular[5] += 0.01  # a camera that really was late is left as recorded
    assert frame_times(irregular, index, 30.0)[5] == irregular[5]


def test_timestamps_out_of_step_with_the_video(tmp_path):
    root = make_dataset(tmp_path / "x", "v2.1", episodes=1, length=6, cameras=CAMERAS[:1])
    info = json.loads((root / "meta/info.json").read_text())
    path = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    late = pa.array([0.0, 0.1, 0.23, 0.3, 0.4, 0.5], pa.float32())
    pq.write_table(table.set_column(table.column_names.index("timestamp"), "timestamp", late), path)
    write_json(root / "meta/info.json", info)
    with pytest.raises(
        DatasetError, match=r"episode 0, frame 2: .* has no frame at 0.2300 s: the nearest, at 0.2000 s"
    ):
        LeRobotDataset(root, action_horizon=2)
    tolerant = LeRobotDataset(root, action_horizon=2, tolerance_s=0.04)
    assert read_code(tolerant[2][CAMERAS[0]])[1] == 2


def test_without_cameras(tmp_path):
    root = make_dataset(tmp_path / "x", cameras=())
    dataset = LeRobotDataset(root, action_horizon=2)
    assert dataset.cameras == ()
    assert dataset[0]["action"].shape == (2, 3)


# Real robot data, the same recording in both versions.


@pytest.fixture(scope="module")
def bridge(shared_dir: Path):
    return [LeRobotDataset(shared_dir / f"data/bridge_mini_{v}", action_horizon=4) for v in ("v3", "v21")]


def test_bridge_values_are_equal_to_the_bit(bridge):
    new, old = bridge
    assert len(new) == len(old) == 250
    assert new.info.tasks == old.info.tasks
    assert new.info.fps == old.info.fps == 5
    assert new.cameras == old.cameras
    for key in (
        "observation.state",
        "action",
        "timestamp",
        "frame_index",
        "episode_index",
        "index",
        "task_index",
    ):
        assert np.array_equal(new.low_dim(key), old.low_dim(key)), key


def test_bridge_frames_are_the_same_pictures(bridge):
    """The two were encoded separately (AV1, lossy): 34.9 dB apart on average, 29.9 at worst.

    So equality is that of the image, not of the byte: every frame is close to its counterpart, and over
    an episode no shift by a frame brings the two versions closer together.
    """
    new, old = bridge
    for camera in new.cameras:
        for episode in range(0, 25, 6):
            rows = range(*new.episode_slices[episode].indices(250))
            a, b = (torch.stack([d[i][camera] for i in rows]).float() for d in (new, old))
            psnr = 10 * torch.log10(255**2 / (a - b).square().mean((1, 2, 3)))
            assert psnr.min() > 29
            aligned = (a - b)[1:-1].abs().mean()
            for shift in (-1, 1):
                assert (a[1:-1] - b[1 + shift : len(b) - 1 + shift]).abs().mean() > aligned
