"""When one process of a run fails, the others end soon and say why, and the last checkpoint is whole."""

import json

import pytest
from torch.distributed import DistNetworkError

from tests.train.engine_runs import Runs
from vla.errors import DatasetError, TrainingError
from vla.train.checkpoint.folder import RunFolder
from vla.train.error_files import ErrorFiles, is_lost_connection
from vla.train.launch import Launch

pytestmark = pytest.mark.slow  # nine runs of two processes

SHORT = ["train.steps=6", "train.save_every=2"]
SHARDED = [*SHORT, "train.checkpoints=sharded"]


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """Runs of two processes, one of which fails at step 3, or finds the disk full then."""
    made = Runs(dataset, tmp_path_factory.mktemp("failing"))
    case = made.case
    made(
        case("whole", "single", *SHORT),
        case("other-fails", "ddp", *SHORT, fails=[1, 3]),
        case("main-fails", "ddp", *SHORT, fails=[0, 3]),
        case("killed", "ddp", *SHORT, dies=[1, 3]),
        case("other-full", "fsdp2", *SHARDED, full=[1, 3]),
        case("other-full-on", "fsdp2", *SHARDED, run="other-full", resume=True),
        case("main-full", "ddp", *SHORT, full=[0, 3]),
        case("main-full-on", "ddp", *SHORT, run="main-full", resume=True),
    )
    return made


def errors(runs, name):
    """What each process ended with; soon, all of them."""
    assert runs.statuses[name] in ([3, 3], [3, -9]), runs.stderr
    assert runs.seconds[name] < 60
    survivors = [rank for rank, status in enumerate(runs.statuses[name]) if status == 3]
    return [runs.report(name, rank)["error"] for rank in survivors]


@pytest.mark.parametrize(("name", "failed"), [("other-fails", 1), ("main-fails", 0)])
def test_the_others_say_its_error(runs, name, failed):
    said = errors(runs, name)
    assert said[failed] == "DatasetError: a frame\nis damaged"
    assert said[1 - failed].startswith(
        f"TrainingError: This process stops because of another one: process {failed}: DatasetError: a frame "
        "is damaged. The last checkpoint is whole"
    )


def test_one_that_was_killed_says_nothing(runs):
    (said,) = errors(runs, "killed")
    assert said.startswith("TrainingError: Another process of this run has died")


@pytest.mark.parametrize("name", ["other-full", "main-full"])
def test_a_full_disk_leaves_the_checkpoint_before(runs, name):
    said = errors(runs, name)
    if name == "other-full":  # written by both: each knows at once
        for error in said:
            assert error.startswith("TrainingError: Process 1 could not write its part of the checkpoint's ")
            assert "the disk is full. Earlier checkpoints are whole" in error
    else:
        assert said[0].startswith("TrainingError: Could not write")
        assert "step-000004: the disk is full" in said[0]
        assert "process 0: TrainingError: Could not write" in said[1]
    before, after = runs.report(name), runs.report(f"{name}-on")
    assert [step for step, *_ in before["losses"]] == [1, 2, 3, 4]
    assert (before["left"], before["last"]) == (["last", "step-000002"], "step-000002")
    assert runs.statuses[f"{name}-on"] == [0, 0], runs.stderr
    whole = {step: losses for step, *losses in runs.report("whole")["losses"]}
    ours = {step: losses for step, *losses in after["losses"]}
    assert ours == {step: pytest.approx(whole[step], abs=1e-5) for step in (3, 4, 5, 6)}


CLOSED = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer")


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Let a process of several end with an error, and return what comes out of it."""

    def end(rank, error, world=2):
        expected = TrainingError if error is CLOSED else type(error)
        with pytest.raises(expected) as caught, ErrorFiles(tmp_path / "run" / "errors", Launch(rank, world)):
            raise error
        return caught.value

    return end


def test_a_process_hears_what_others_said(process):
    for rank in (3, 0, 1, 2):
        process(rank, DatasetError(f"file {rank}\n  is gone"), world=5)
    said = str(process(4, CLOSED, world=5))
    assert (
        "process 0: DatasetError: file 0 is gone; process 1: DatasetError: file 1 is gone; process 2" in said
    )
    assert "file 3" not in said
    assert "(and 1 more)" in said


def test_what_an_earlier_start_said_is_gone(process, tmp_path):
    process(1, KeyError("old"))
    assert (tmp_path / "run" / "errors" / "process-1.txt").read_text() == "KeyError: 'old'\n"
    RunFolder(tmp_path / "run").check_free()
    with ErrorFiles(tmp_path / "run" / "errors", Launch(1, 2)):
        assert list((tmp_path / "run").iterdir()) == []
    assert "Another process of this run has died" in str(process(0, CLOSED))


def test_one_process_writes_nothing(process, tmp_path):
    process(0, DatasetError("gone"), world=1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_hides_no_error(process, tmp_path):
    (tmp_path / "run").write_text("a file")
    assert str(process(1, DatasetError("gone"))) == "gone"


def test_the_launcher_hears_it(process, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    process(1, DatasetError("gone"))  # told by the process itself, in one line
    assert not (tmp_path / "error.json").exists()
    process(1, ValueError("a fault"))
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "ValueError: a fault"


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (CLOSED, True),
        (DistNetworkError("The client socket has failed to connect"), True),
        (RuntimeError("of our own"), False),
        (ValueError("gloo/"), False),
        (TrainingError("runs/gloo/x is not empty"), False),
    ],
)
def test_only_lost_connections_are_renamed(error, is_lost):
    assert is_lost_connection(error) == is_lost
