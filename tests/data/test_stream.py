"""Streaming, against a hub on this machine: what is downloaded when, by how many, and what fails."""

import itertools
import multiprocessing
import os
import pickle
import shutil
import time

import pytest
import torch
from huggingface_hub import constants, errors

from tests.data.make import CAMERAS, draw_code, make_dataset, read_code, write_mp4
from tests.hub_server import serving, speak_to
from vla.data import LeRobotDataset, ResumableLoader, stream
from vla.data.hub import DatasetLocation
from vla.data.loading.file_order import WindowedEpochs
from vla.data.stream import FileStream
from vla.errors import ConfigError, DatasetError

ID = "someone/many"
EPISODES, LENGTH = 8, 6


@pytest.fixture(scope="session")
def many_files(tmp_path_factory):
    """v2.1: 8 episodes of 6 frames, a video file for each of two cameras."""
    return make_dataset(tmp_path_factory.mktemp("many"), "v2.1", episodes=EPISODES, length=LENGTH)


@pytest.fixture
def hub(many_files, monkeypatch, tmp_path):
    with serving() as served:
        served.add(f"datasets/{ID}", many_files)
        speak_to(served.url, monkeypatch, tmp_path / "cache")
        yield served


@pytest.fixture
def impatient(monkeypatch):
    """A failure is tried again at once, by the hub's library too."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def videos(hub):
    return [name for name in hub.downloads if name.endswith(".mp4")]


def opened(**options):
    return LeRobotDataset(ID, action_horizon=2, streaming=True, **options)


def codes(item, generator=None):
    """What a sample's pixels say: (episode, frame) of either camera."""
    return {"code": torch.tensor([read_code(item[key]) for key in CAMERAS])}


def loader(dataset, episodes=2, batch_size=4, **options):
    epochs = WindowedEpochs(dataset.shuffle_window(episodes), 0)
    return ResumableLoader(dataset, codes, batch_size, 0, epochs=epochs, **options)


def seen(batches):
    """(episode, frame) of every sample, after checking that pixels, cameras and labels agree."""
    frames = []
    for batch, where in batches:
        for code, place in zip(batch["code"].tolist(), where, strict=True):
            assert code == [[*place, 0], [*place, 1]]
        frames += where
    return frames


def test_opening_downloads_no_video_and_an_item_its_own(hub, many_files):
    dataset = opened()
    assert videos(hub) == []
    assert len([name for name in hub.downloads if name.startswith("data/")]) == EPISODES
    whole = LeRobotDataset(many_files, action_horizon=2)
    assert dataset.fingerprint == whole.fingerprint
    for _ in range(2):
        assert all(dataset[15][key].equal(whole[15][key]) for key in ("action", *CAMERAS))
        assert videos(hub) == [f"videos/chunk-000/{key}/episode_000002.mp4" for key in CAMERAS]


def test_cameras_and_episodes_that_nobody_asked_for_stay_there(hub):
    dataset = opened(cameras=[CAMERAS[1]], episodes=[5, 1])
    assert [read_code(dataset[i][CAMERAS[1]])[0] for i in range(2 * LENGTH)] == [5] * LENGTH + [1] * LENGTH
    assert videos(hub) == [f"videos/chunk-000/{CAMERAS[1]}/episode_{e:06d}.mp4" for e in (5, 1)]


def test_the_first_batch_needs_few_files_and_an_epoch_each_once(hub):
    ours = loader(opened())
    batches = iter(ours)
    frames = seen([next(batches)])
    assert len(videos(hub)) <= 2 * 2  # two episodes are mixed, two cameras each
    most = len(videos(hub))
    for batch in itertools.islice(batches, ours.batches_per_epoch - 1):
        frames += seen([batch])
        most = max(most, len(videos(hub)) - 2 * len(finished(frames)))
    assert sorted(frames) == [(e, f) for e in range(EPISODES) for f in range(LENGTH)]
    assert most <= 2 * 3  # the window's, and within a batch the one that follows
    assert len(videos(hub)) == len(set(videos(hub))) == 2 * EPISODES
    seen(itertools.islice(batches, ours.batches_per_epoch))
    assert len(videos(hub)) == 2 * EPISODES  # the second epoch finds them


@pytest.mark.parametrize("worker", [False, True])
def test_a_video_is_compared_with_the_metadata_when_it_is_fetched(many_files, monkeypatch, tmp_path, worker):
    wrong = shutil.copytree(many_files, tmp_path / "wrong")
    folder = wrong / f"videos/chunk-000/{CAMERAS[0]}"
    write_mp4(folder / "episode_000001.mp4", [draw_code(1, i, 0) for i in range(LENGTH - 2)], 10)
    write_mp4(folder / "episode_000002.mp4", [draw_code(2, i, 0, 64, 32) for i in range(LENGTH)], 10)
    with serving() as served:
        served.add(f"datasets/{ID}", wrong)
        speak_to(served.url, monkeypatch, tmp_path / "cache")
        dataset = opened()
        assert videos(served) == []
        dataset = pickle.loads(pickle.dumps(dataset)) if worker else dataset
        assert read_code(dataset[0][CAMERAS[0]]) == (0, 0, 0)
        for index, message in (
            (LENGTH, "frame 0: .*episode_000001.mp4: .* of episode 1 .* 2 frames too short"),
            (2 * LENGTH, "episode_000002.mp4: its images are 64 high and 32 wide.* are swapped"),
        ):
            with pytest.raises(DatasetError, match=message):
                dataset[index]
    with pytest.raises(DatasetError, match="2 frames too short"):
        LeRobotDataset(wrong, action_horizon=2)


def finished(frames):
    return {e for e, _ in frames if sum(e == other for other, _ in frames) == LENGTH}


def test_two_processes_of_two_workers_share_an_epoch_and_the_cache(hub):
    dataset = opened()
    ranks = [loader(dataset, rank=rank, world_size=2, num_workers=2) for rank in range(2)]
    iterators = [iter(one) for one in ranks]
    frames = []
    for _ in range(ranks[0].batches_per_epoch):  # in turn, so that all four workers are at it together
        frames += [place for each in iterators for place in seen([next(each)])]
    assert sorted(frames) == [(e, f) for e in range(EPISODES) for f in range(LENGTH)]
    assert len(videos(hub)) == len(set(videos(hub))) == 2 * EPISODES


def _read_first(dataset, barrier):
    barrier.wait()
    assert read_code(dataset[0][CAMERAS[0]]) == (0, 0, 0)


def test_processes_that_want_one_file_at_once_download_it_once(hub):
    dataset, context = opened(), multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    readers = [context.Process(target=_read_first, args=(dataset, barrier)) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert [reader.exitcode for reader in readers] == [0] * 4
    assert len(videos(hub)) == 2


def test_resuming_gives_the_same_batches(hub):
    reference = list(itertools.islice(loader(opened()), 18))
    first = loader(opened(), num_workers=2)
    begun = list(itertools.islice(first, 7))
    resumed = loader(opened())
    resumed.load_state_dict(first.state_dict())
    for (batch, where), (expected, place) in zip(
        [*begun, *itertools.islice(resumed, 11)], reference, strict=True
    ):
        assert where == place
        assert batch["code"].equal(expected["code"])


def test_what_is_pushed_in_the_middle_is_not_read(hub, many_files):
    dataset = opened()
    commit = hub.repos[f"datasets/{ID}"].sha("main")
    assert dataset.revision == commit
    files = hub.repos[f"datasets/{ID}"].branches
    files["main"], files["before"] = dict.fromkeys(files["main"], b"other"), files["main"]
    assert read_code(dataset[0][CAMERAS[0]]) == (0, 0, 0)
    assert opened(revision=commit).fingerprint == dataset.fingerprint
    assert {line.split("/resolve/")[1].split("/")[0] for line in hub.requests if "/resolve/" in line} == {
        commit
    }


def test_a_lost_connection_is_tried_again(hub, caplog, monkeypatch):
    dataset = opened()
    asked = []

    def recover(seconds):
        asked.append(seconds)
        if seconds == stream._WAITS_S[1]:
            hub.always = None

    monkeypatch.setattr(time, "sleep", recover)
    hub.always = 503
    assert read_code(dataset[0][CAMERAS[0]]) == (0, 0, 0)
    assert [seconds for seconds in asked if seconds in stream._WAITS_S[1:]] == [stream._WAITS_S[1]]
    assert "episode_000000.mp4 of the hub dataset 'someone/many'" in caplog.text
    assert "Attempt 2 of 4 follows" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_connection_that_stays_lost(hub, impatient, num_workers):
    ours = loader(opened(), num_workers=num_workers)
    batches = iter(ours)
    next(batches)
    hub.always = 503
    with pytest.raises(
        DatasetError, match=r"episode_\d+.mp4 of the hub dataset 'someone/many' at .*503"
    ) as error:
        list(itertools.islice(batches, ours.batches_per_epoch))
    assert "\n" not in str(error.value)


def test_a_hub_that_is_gone(hub, impatient, monkeypatch):
    dataset = opened()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(DatasetError, match=r"top, episode 0, frame 0: .*could not be downloaded"):
        dataset[0]


def test_what_will_not_pass_is_not_tried_again(hub):
    dataset = opened()
    del hub.repos[f"datasets/{ID}"].branches["main"][f"videos/chunk-000/{CAMERAS[0]}/episode_000000.mp4"]
    before = len(hub.requests)
    with pytest.raises(DatasetError, match="has no revision"):
        dataset[0]
    assert len(hub.requests) == before + 1


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (errors.OfflineModeIsEnabled("offline"), False),
        (errors.LocalEntryNotFoundError("not there"), False),
        (OSError(28, "No space left on device"), False),
        (OSError("Consistency check failed: 3 bytes of 4"), True),
        (ConnectionResetError(104, "reset"), True),
        (errors.XetDownloadError("xet"), True),
        (RuntimeError("from Rust"), True),
        (errors.HTTPError("connection refused"), True),
        (errors.HFValidationError("name"), False),
        (None, False),
    ],
)
def test_what_may_pass(error, passes):
    assert stream._may_pass(error) is passes


def test_offline_what_is_in_the_cache_can_be_read(hub, monkeypatch):
    dataset = opened()
    for i in range(2 * LENGTH):
        dataset[i]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError, match=r"12 of the 16 video files of the hub dataset.*episode_000002"):
        opened()
    cached = opened(episodes=[0, 1])
    assert seen_codes(cached) == [(e, f) for e in (0, 1) for f in range(LENGTH)]
    with pytest.raises(DatasetError, match=r"episode_000002.mp4 of the hub dataset .*not be downloaded"):
        dataset[2 * LENGTH]


def seen_codes(dataset):
    return [read_code(dataset[i][CAMERAS[0]])[:2] for i in range(len(dataset))]


def test_an_incomplete_repository_is_seen_before_the_run(hub):
    name = f"videos/chunk-000/{CAMERAS[0]}/episode_000003.mp4"
    del hub.repos[f"datasets/{ID}"].branches["main"][name]
    with pytest.raises(DatasetError, match=f"{name} is missing: the dataset 'someone/many' at .*incomplete"):
        opened()


def test_the_disk_space_is_bounded(hub, many_files, tmp_path, monkeypatch):
    size = max(path.stat().st_size for path in many_files.rglob("*.mp4"))
    monkeypatch.setattr(stream, "_IN_USE_S", 0.0)
    dataset = opened(streaming_disk_gb=5 * size / 1e9, open_videos=2)
    clock = itertools.count(1_000_000)
    monkeypatch.setattr(os, "utime", _stamp_with(clock))

    def kept():
        found = [path for path in tmp_path.rglob("streamed/*/videos/**/*.mp4") if path.is_file()]
        assert sum(path.stat().st_size for path in found) <= 5 * size
        return {int(path.stem[-6:]) for path in found}

    for episode in (0, 1, 0, 2, 0, 3):
        assert read_code(dataset[episode * LENGTH][CAMERAS[0]]) == (episode, 0, 0)
        for path in tmp_path.rglob(f"streamed/*/videos/**/episode_{episode:06d}.mp4"):
            os.utime(path)
        assert episode in kept()
    assert 0 in kept()  # used again and again
    assert 1 not in kept()
    before = len(videos(hub))
    assert read_code(dataset[LENGTH][CAMERAS[0]]) == (1, 0, 0)
    assert len(videos(hub)) == before + 2  # downloaded again


def _stamp_with(clock):
    stamp = os.utime

    def utime(path, times=None):
        now = next(clock)
        stamp(path, (now, now))

    return utime


def test_what_is_in_use_or_was_there_before_is_not_removed(hub, many_files, tmp_path):
    LeRobotDataset(ID, action_horizon=2, episodes=[0])[0]  # into the hub's cache, on purpose
    size = max(path.stat().st_size for path in many_files.rglob("*.mp4"))
    dataset = opened(streaming_disk_gb=2 * size / 1e9)
    assert seen_codes(dataset) == [(e, f) for e in range(EPISODES) for f in range(LENGTH)]
    streamed = list(tmp_path.rglob("streamed/*/videos/**/*.mp4"))
    assert len(streamed) == 2 * (EPISODES - 1)  # all were used within the minute
    assert len(videos(hub)) == 2 * EPISODES


def test_disk_space_too_small_for_the_window_is_refused(hub):
    dataset = opened(streaming_disk_gb=1e-5)
    with pytest.raises(ConfigError, match=r"among 4 episodes may take .* streamed files may take 1e-05 GB"):
        dataset.shuffle_window(4)
    with pytest.raises(ConfigError, match="must be positive, got 0 GB"):
        opened(streaming_disk_gb=0)


def test_windows_hold_as_many_episodes_as_asked_for(hub, many_files):
    dataset = opened()
    assert dataset.shuffle_window(5).size == 5
    assert dataset.shuffle_window(1).size == 2
    assert dataset.shuffle_window(5).blocks.tolist() == [e for e in range(EPISODES) for _ in range(LENGTH)]
    folder = LeRobotDataset(many_files, action_horizon=2, streaming=True)  # has its files already
    assert (folder.shuffle_window(5).blocks == dataset.shuffle_window(5).blocks).all()
    assert folder.revision is None


def test_many_episodes_in_a_file(hub, tmp_path):
    """v3.0: some episodes in each file."""
    folder = make_dataset(
        tmp_path / "v3", episodes=9, length=[25, 31, 28, 30, 22, 35, 30, 27, 20], video_file_mb=0.002
    )
    hub.add("datasets/someone/v3", folder)
    dataset = LeRobotDataset("someone/v3", action_horizon=2, streaming=True)
    window = dataset.shuffle_window(4)
    assert 3 <= len(set(window.blocks)) < 9
    assert window.size < len(set(window.blocks))
    ours = loader(dataset, episodes=4, drop_last=False)
    frames = seen(itertools.islice(ours, ours.batches_per_epoch))
    assert sorted(frames) == [(e.index, f) for e in dataset.episodes for f in range(e.length)]
    assert sorted(videos(hub)) == sorted(str(p.relative_to(folder)) for p in folder.rglob("*.mp4"))


def test_a_stream_needs_a_commit(tmp_path):
    with pytest.raises(DatasetError, match="not a snapshot of a commit"):
        FileStream(DatasetLocation(tmp_path))


def test_a_stream_can_be_sent_to_another_process(hub):
    dataset = pickle.loads(pickle.dumps(opened()))
    assert read_code(dataset[7][CAMERAS[1]]) == (1, 1, 1)
