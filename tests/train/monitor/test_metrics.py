import logging
import time

import pytest

from tests.folders import unchanged
from vla.errors import TrainingError
from vla.train.monitor.metrics import DataWait, MetricsLog, ProgressDisplay, read_metrics


def test_the_share_of_waiting():
    wait = DataWait()
    with wait:
        time.sleep(0.05)
    time.sleep(0.05)
    assert 0.1 < wait.take()["data_wait_share"] < 0.9
    assert wait.take()["data_wait_share"] == 0


def test_records_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, None, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # the process was killed here
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]
    log = MetricsLog(path, None, 2)
    log.write(3, {"loss": 9.0})
    log.close()
    assert read_metrics(path) == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 9.0},
    ]


def test_tensorboard_holds_the_same_numbers(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 0)
    log.write(5, {"loss": 0.25})
    log.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(5, 0.25)]


def test_full_disk_is_one_error(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", None, 0)
    log._file.close()
    log._file = open("/dev/full", "a", buffering=1)  # noqa: SIM115
    with pytest.raises(TrainingError, match="No space left"):
        log.write(1, {"loss": 1.0})


def test_without_a_terminal_reports_are_log_lines(caplog):
    with caplog.at_level(logging.INFO), ProgressDisplay(10, 0, 4, show=True) as display:
        display.advance(2, 0.5)
        values = display.report(2, {"loss": 0.5})
    assert values["loss"] == 0.5
    assert values["samples_per_second"] > 0
    assert "step 2 of 10: loss 0.5" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO), ProgressDisplay(10, 0, 4, show=False) as display:
        display.report(2, {"loss": 0.5})
    assert caplog.text == ""


def test_a_file_in_the_place_of_tensorboards_folder(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with unchanged(tmp_path), pytest.raises(TrainingError, match=r"tensorboard is a file, .* move it away"):
        MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 0)
