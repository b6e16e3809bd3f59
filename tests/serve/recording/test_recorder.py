"""What was asked and answered becomes a dataset, and a slow or full disk holds no robot up."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.serve.robots import tiny
from vla.data import LeRobotDataset
from vla.errors import DatasetError
from vla.serve.contract import contract
from vla.serve.recording.claim import check_unclaimed
from vla.serve.recording.episodes import NO_TASK, Episodes, Record
from vla.serve.recording.recorder import Recorder

RNG = np.random.default_rng(0)
ABOUT = {
    "robot": {
        "name": "arm",
        "cameras": {"top": None},
        "state": {"names": ["x", "y"]},
        "action": {"names": ["u"], "relative": None},
        "frequency": 12.4,
        "horizon": 3,
    },
    "limits": None,
    "checkpoint": "x",
    "revision": None,
}


def record(session="a", size=(9, 11), task="go", answered=True, **options):
    observation = {
        "observation.images.top": RNG.integers(0, 256, (*size, 3), dtype=np.uint8),
        "observation.state": RNG.normal(size=2).astype(np.float32),
    }
    if task is not None:
        observation["task"] = task
    actions = RNG.normal(size=(3, 1)).astype(np.float32) if answered else None
    return Record(session, observation, actions, **options)


def test_everything_is_in_the_dataset_to_the_bit(tmp_path):
    records = [
        record("a", seed=3, level="graph", latency=0.5, clipped=2, time=1000.25, client_time=7.5),
        record("b", seed=2**63 + 1),
        record("a", answered=False),
        record("a"),
    ]
    with Recorder(tmp_path / "rec", ABOUT) as recorder:
        assert [recorder.put(one) for one in records] == [True] * 4
        recorder.end("a")
    assert (recorder.recorded, recorder.dropped, recorder.unfit, recorder.error) == (4, 0, 0, None)
    dataset = LeRobotDataset(tmp_path / "rec", action_horizon=1)
    assert [len(range(*one.indices(99))) for one in dataset.episode_slices] == [3, 1]
    assert dataset.info.fps == 12
    first, noted, last, other = (dataset[index] for index in range(4))
    for item, one in ((first, records[0]), (noted, records[2]), (last, records[3]), (other, records[1])):
        image = item["observation.images.top"].permute(1, 2, 0).numpy()
        assert (image == one.observation["observation.images.top"]).all()
        assert (item["observation.state"].numpy() == one.observation["observation.state"]).all()
        assert item["task"] == "go"
        if one.actions is not None:
            assert (item["chunk"].numpy() == one.actions.reshape(-1)).all()
            assert item["action"].reshape(-1).tolist() == one.actions[0].tolist()
    assert noted["action"].reshape(-1).tolist() == records[0].actions[1].tolist()  # executed meanwhile
    assert [bool(item["answered"]) for item in (first, noted, last)] == [True, False, True]
    assert [int(item["step"]) for item in (first, noted, last, other)] == [0, 1, 2, 0]
    assert (int(first["seed"]), first["level"], float(first["latency_ms"])) == (3, "graph", 500.0)
    assert (int(first["time_us"]), int(first["client_time_us"])) == (1_000_250_000, 7_500_000)
    assert int(last["client_time_us"]) == int(last["seed"]) == -1
    assert json.loads(other["request"]) == {"seed": 2**63 + 1}
    assert json.loads((tmp_path / "rec" / "meta" / "serving.json").read_text()) == ABOUT


def test_a_new_task_or_a_long_session_begins_an_episode(tmp_path):
    with Recorder(tmp_path / "rec", ABOUT, max_frames=2) as recorder:
        for task in ("one", "one", "one", "two", None):
            recorder.put(record(task=task))
    dataset = LeRobotDataset(tmp_path / "rec", action_horizon=1)
    assert [one.length for one in dataset.episodes] == [2, 1, 1, 1]
    assert [dataset[index]["task"] for index in range(5)] == ["one"] * 3 + ["two", NO_TASK]
    assert [int(dataset[index]["step"]) for index in range(5)] == [0, 1, 2, 3, 4]


def test_the_memory_of_unfinished_episodes_is_bounded(tmp_path):
    size = record().num_bytes
    with Recorder(tmp_path / "rec", ABOUT, max_held_mb=3.5 * size / 2**20) as recorder:
        for session in "aabab":
            recorder.put(record(session))
    lengths = [one.length for one in LeRobotDataset(tmp_path / "rec", action_horizon=1).episodes]
    assert lengths[0] == 3  # of a, before the fourth frame
    assert sum(lengths) == 5 == recorder.recorded


def test_images_of_another_size_begin_a_dataset_next_to_the_first(tmp_path, caplog):
    counted = []
    (tmp_path / "rec-2").mkdir()  # somebody's
    with Recorder(tmp_path / "rec", ABOUT, counted=lambda *one: counted.append(one)) as recorder:
        shown = [record(size=size) for size in ((4, 4), (8, 6), (8, 6), (4, 4))]
        for one in shown:
            recorder.put(one)
        recorder.put(Record("a", record().observation, np.zeros((2, 1), np.float32)))
    assert (recorder.recorded, recorder.unfit, recorder.missing) == (4, 1, 1)
    assert sum(frames for what, frames in counted if what == "recorded") == 4
    assert ("unfit", 1) in counted
    for name, chosen in (("rec", (0, 3)), ("rec-3", (1, 2))):
        dataset = LeRobotDataset(tmp_path / name, action_horizon=1)
        assert [int(dataset[index]["step"]) for index in range(len(dataset))] == list(chosen)
        for index, number in enumerate(chosen):
            image = dataset[index]["observation.images.top"].permute(1, 2, 0).numpy()
            assert (image == shown[number].observation["observation.images.top"]).all()
        assert json.loads((tmp_path / name / "meta/serving.json").read_text()) == ABOUT
    assert list((tmp_path / "rec-2").iterdir()) == []
    assert f"(8, 6)}} are recorded in {tmp_path / 'rec-3'}, not in" in caplog.text
    assert "the chunk is [2, 1], the contract says [3, 1]" in caplog.text
    assert recorder.summary() == (
        f"2 frames in {tmp_path / 'rec'}, 2 frames in {tmp_path / 'rec-3'}; 1 frames are not recorded: "
        "1 were of too many layouts or another chunk"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rec", "rec-2", "rec-3"]


def test_layouts_are_bounded(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("vla.serve.recording.episodes.MAX_LAYOUTS", 1)
    with Recorder(tmp_path / "rec", ABOUT) as recorder:
        recorder.put(record())
        recorder.put(record(size=(8, 8)))
    assert (recorder.recorded, recorder.unfit) == (1, 1)
    assert "images are {'observation.images.top': (8, 8)}" in caplog.text


def test_a_folder_has_one_recorder_at_a_time(tmp_path):
    with Recorder(tmp_path / "rec", ABOUT) as recorder:
        for refused in (check_unclaimed, lambda folder: Recorder(folder, ABOUT | {"checkpoint": "y"})):
            with pytest.raises(
                DatasetError, match=f"is being recorded into already, by process {os.getpid()}"
            ):
                refused(tmp_path / "rec")
        recorder.put(record())
    assert json.loads((tmp_path / "rec/meta/serving.json").read_text()) == ABOUT
    left = tmp_path / ".next.recording"
    left.write_text("process 1 on a computer that was switched off")
    check_unclaimed(tmp_path / "next")
    Recorder(tmp_path / "next", ABOUT).close()
    assert [path.name for path in tmp_path.iterdir()] == ["rec"]


def test_a_dataset_that_came_meanwhile_keeps_its_contract(tmp_path, caplog):
    with Recorder(tmp_path / "rec", ABOUT) as recorder:
        recorder.put(record())
        recorder.end("a")
        until(lambda: recorder.recorded)
        (tmp_path / "rec/meta").mkdir(parents=True)
        (tmp_path / "rec/meta/serving.json").write_text("another's")
    assert (tmp_path / "rec/meta/serving.json").read_text() == "another's"
    assert [path.name for path in (tmp_path / "rec").rglob("*")] == ["meta", "serving.json"]
    with pytest.raises(
        DatasetError, match=r"Nothing could be recorded: 1 frames .*created while.*is left in .*partial"
    ):
        recorder.summary()
    with Recorder(tmp_path / "next", ABOUT) as recorder:
        (tmp_path / "next").mkdir()
        recorder.put(record())
    assert recorder.summary() == f"1 frames in {tmp_path / 'next-2'}"
    assert list((tmp_path / "next").iterdir()) == []


def test_a_slow_disk_holds_nobody_up(tmp_path, monkeypatch):
    add = Episodes.add

    def slowly(self, *given):
        time.sleep(0.1)
        return add(self, *given)

    monkeypatch.setattr(Episodes, "add", slowly)
    one = record()
    with Recorder(tmp_path / "rec", ABOUT, max_waiting_mb=2.5 * one.num_bytes / 2**20) as recorder:
        began = time.monotonic()
        taken = [recorder.put(one) for _ in range(30)]
        assert time.monotonic() - began < 0.09
    assert 2 <= sum(taken) <= 4
    assert recorder.recorded == sum(taken)
    assert recorder.dropped == 30 - sum(taken)


def test_an_error_ends_the_recording_and_keeps_what_was_saved(tmp_path, monkeypatch, caplog):
    with Recorder(tmp_path / "rec", ABOUT) as recorder:
        recorder.put(record("a"))
        recorder.end("a")
        deadline = time.monotonic() + 10
        while not recorder.recorded and time.monotonic() < deadline:
            time.sleep(0.01)

        def full(*given, **named):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("vla.data.writing.writer.LeRobotWriter._write_rows", full)
        recorder.put(record("b"))
        recorder.end("b")
        while recorder.error is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not recorder.put(record("c"))
    assert "No space left" in recorder.error
    assert "Nothing is recorded any more" in caplog.text
    assert (recorder.recorded, recorder.dropped) == (1, 2)
    assert len(LeRobotDataset(tmp_path / "rec", action_horizon=1)) == 1
    assert (tmp_path / "rec" / "meta" / "serving.json").exists()
    assert recorder.summary().startswith(f"1 frames in {tmp_path / 'rec'}; 2 frames are not recorded: ")
    assert recorder.summary().endswith("No space left on device")


def test_a_disk_that_is_full_from_the_start(tmp_path, monkeypatch):
    def full(*given, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vla.data.writing.writer.LeRobotWriter._write_rows", full)
    counted = []
    with Recorder(tmp_path / "rec", ABOUT, counted=lambda *one: counted.append(one)) as recorder:
        for _ in range(3):
            recorder.put(record())
    with pytest.raises(DatasetError, match=r"Nothing could be recorded: 3 frames .*No space left on device"):
        recorder.summary()
    assert sum(frames for what, frames in counted if what == "dropped") == 3
    assert list(tmp_path.iterdir()) == []


def until(is_so, seconds=10):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_finished_episodes_can_be_read_before_the_end(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("vla.serve.recording.recorder._FLUSH_IDLE", 0.0)
    monkeypatch.setattr("vla.serve.recording.recorder._FLUSH_SHARE", 1)

    def saved(*sessions):
        for session in sessions:
            recorder.put(record(session))
            recorder.end(session)
        until(lambda: recorder.recorded == counted + len(sessions) and not recorder._episodes.is_unsafe)
        return shutil.copytree(next(tmp_path.glob(".rec.*.partial")), tmp_path / ".rec.abcdefg1.partial")

    counted = 0
    with Recorder(tmp_path / "rec", ABOUT) as recorder:
        left = saved("a", "b")
        assert len(LeRobotDataset(left, action_horizon=1)) == 2
        assert json.loads((left / "meta/serving.json").read_text()) == ABOUT
        shutil.rmtree(left)
        counted = 2
        left = saved("c")
        assert len(LeRobotDataset(left, action_horizon=1)) == 3
        recorder.put(record("d"))
    assert len(LeRobotDataset(tmp_path / "rec", action_horizon=1)) == 4
    shutil.rmtree(tmp_path / "rec")
    Recorder(tmp_path / "rec", ABOUT).close()
    assert (
        f"{left} is left of a recording that was killed, a dataset of its 3 finished episodes" in caplog.text
    )


def test_flushing_is_seldom(tmp_path, monkeypatch):
    flushed, real = [], Episodes.flush

    def counted(episodes):
        flushed.append(1)
        real(episodes)

    monkeypatch.setattr(Episodes, "flush", counted)
    monkeypatch.setattr("vla.serve.recording.recorder._FLUSH_IDLE", 60.0)
    with Recorder(tmp_path / "rec", ABOUT) as recorder:
        for session in "abcd":
            recorder.put(record(session))
            recorder.end(session)
            until(lambda: not recorder._queue.qsize())
    assert len(flushed) == 1
    assert recorder.recorded == 4


def test_ctrl_c_while_it_is_completed_has_its_effect_afterwards(tmp_path, monkeypatch, caplog):
    real = Episodes.finish

    def interrupted(episodes):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        return real(episodes)

    monkeypatch.setattr(Episodes, "finish", interrupted)
    recorder = Recorder(tmp_path / "rec", ABOUT)
    recorder.put(record())
    with pytest.raises(KeyboardInterrupt):
        recorder.close()
    assert len(LeRobotDataset(tmp_path / "rec", action_horizon=1)) == 1
    assert "is being completed; the signal has its effect afterwards" in caplog.text
    assert "gone" not in caplog.text
    recorder.close()


def test_nothing_asked_nothing_written(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), Recorder(tmp_path / "rec", ABOUT):
        pass
    assert "Nothing was asked" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_closed_it_takes_nothing(tmp_path):
    recorder = Recorder(tmp_path / "rec", ABOUT)
    recorder.put(record())
    recorder.close()
    recorder.close()
    recorder.end("a")
    assert not recorder.put(record())
    with pytest.raises(DatasetError, match="exists already"):
        Recorder(tmp_path / "rec", ABOUT)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        Recorder(tmp_path / "file" / "rec", ABOUT)


PROGRAM = """
import sys
from tests.serve.recording.test_recorder import ABOUT, record
from vla.serve.recording.recorder import Recorder
recorder = Recorder(sys.argv[1], ABOUT)
recorder.put(record())
if sys.argv[2] == "error":
    raise KeyboardInterrupt
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["end", "error"])
def test_a_program_that_ends_without_closing_leaves_a_whole_dataset(tmp_path, how):
    subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "rec", how], timeout=120, capture_output=True)
    assert len(LeRobotDataset(tmp_path / "rec", action_horizon=1)) == 1
    assert (tmp_path / "rec" / "meta" / "serving.json").exists()


def test_the_contract_of_a_policy_is_enough(tmp_path):
    policy = tiny()
    with Recorder(tmp_path / "rec", contract(policy, checkpoint="x")) as recorder:
        observation = {
            "observation.images.top": np.zeros((8, 8, 3), np.uint8),
            "observation.state": np.zeros(3, np.float32),
            "task": "left",
        }
        recorder.put(Record("a", observation, policy.infer(observation)["actions"]))
    assert recorder.recorded == 1
