"""What ends a run from below is one line, and the finished steps are saved."""

import errno
import os
import signal

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from tests.train.conftest import numbers
from vla.errors import DatasetError, TrainingError
from vla.policies.base import Policy
from vla.policies.flow.policy import FlowPolicy
from vla.train import load_recipe, train
from vla.train.checkpoint.on_disk import list_checkpoints
from vla.train.loop import Loop
from vla.train.rescue import CompilerError, DataWorkerError, StepMemoryError, explained, is_lost_worker

KILLED = RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. ")
BUS = RuntimeError(
    "DataLoader worker (pid 17) is killed by signal: Bus error. It is possible that dataloader's workers are "
    "out of shared memory. Please try to raise your shared memory limit."
)
ENDED = RuntimeError("DataLoader worker (pid(s) 17, 18) exited unexpectedly")
SHARED = RuntimeError(
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback\nRuntimeError: unable to write "
    "to file </torch_1_2_3>: No space left on device (28)"
)


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried")
CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
REFUSED = OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            KILLED,
            DataWorkerError,
            ["Step 3", "worker 17 was killed by a signal (Killed)", "num_workers (now 2"],
        ),
        (BUS, DataWorkerError, ["shared memory (/dev/shm", "--shm-size"]),
        (ENDED, DataWorkerError, ["data worker 17, 18 ended unexpectedly"]),
        (SHARED, DataWorkerError, ["shared memory (/dev/shm"]),
        (REFUSED, DataWorkerError, ["Cannot allocate", "num_workers"]),
        (CUDA, StepMemoryError, ["on the device, at train.batch_size=32"]),
        (CPU, StepMemoryError, ["on the machine"]),
        (MemoryError(), StepMemoryError, ["on the machine"]),
    ],
)
def test_each_is_one_line(error, kind, said):
    told = explained(error, load_recipe(None, ["data.path=d", "output=o"]), 3)
    assert type(told) is kind
    assert "\n" not in str(told)
    for part in said:
        assert part in str(told)


@pytest.mark.parametrize("error", [DatasetError("x"), RuntimeError("a fault of ours"), OSError(2, "no file")])
def test_others_stay_what_they_are(error):
    assert explained(error, load_recipe(None, ["data.path=d", "output=o"]), 3) is None


def test_a_compiler_that_fails_is_told_in_one_line():
    failed = BackendCompilerFailed(broken, RuntimeError("\n  no C++ compiler.\n  a trace"), None)
    recipe = load_recipe(None, ["data.path=d", "output=o", "train.compile=stack"])
    told = explained(failed, recipe, 3)
    assert isinstance(told, CompilerError)
    assert str(told) == (
        "Step 3 was not finished: torch.compile failed (no C++ compiler). Leave train.compile out (now "
        "stack): the losses are the same without it."
    )
    assert explained(RuntimeError("a shape"), recipe, 3) is None
    assert explained(failed, load_recipe(None, ["data.path=d", "output=o"]), 3) is None


def broken(graph, example):
    raise RuntimeError("no C++ compiler\n  a trace")


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layers", "stack"])
def test_a_compiler_that_fails_is_one_line_that_says_what_to_leave_out(tiny, monkeypatch, scope):
    family = FlowPolicy if scope == "stack" else Policy
    compiles = getattr(family, f"compile_{scope}")
    monkeypatch.setattr(family, f"compile_{scope}", lambda policy: compiles(policy, broken))
    says = (
        r"^Step 1 was not finished: torch\.compile failed \(no C\+\+ compiler\)\. "
        rf"Leave train\.compile out \(now {scope}\)"
    )
    with pytest.raises(CompilerError, match=says) as caught:
        train(tiny(f"train.compile={scope}"), progress=False)
    assert "\n" not in str(caught.value)


def test_a_circle_of_causes_ends():
    one, other = RuntimeError("a"), RuntimeError("b")
    one.__context__, other.__context__ = other, one
    assert not is_lost_worker(one)


def fails_at(monkeypatch, step, error):
    forward = Loop._forward

    def fail(loop, batch, micro):
        if loop.step == step:
            raise error
        return forward(loop, batch, micro)

    monkeypatch.setattr(Loop, "_forward", fail)


def test_finished_steps_are_saved_and_continue_as_though_nothing_had_happened(tiny, monkeypatch):
    whole = train(tiny(output="whole"), progress=False)
    with monkeypatch.context() as patch:
        fails_at(patch, 3, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
        with pytest.raises(StepMemoryError) as caught:
            train(tiny(), progress=False, memory=lambda recipe, config, engine: "It takes 3 GB.")
    assert str(caught.value).startswith("Step 4 ran out of memory on the device, at train.batch_size=4")
    assert "It takes 3 GB. --resume continues from step 3, which is saved." in str(caught.value)
    resumed = train(tiny(), resume=True, progress=False)
    assert numbers(resumed.folder) == numbers(whole.folder)


def test_before_the_first_step_nothing_is_saved(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fails_at(patch, 0, KILLED)
        with pytest.raises(DataWorkerError, match="Nothing was saved"):
            train(tiny(), progress=False)
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []
    with pytest.raises(TrainingError, match=r"ended before its first checkpoint .*starts it anew"):
        train(tiny("train.steps=1"), resume=True, progress=False)
    assert train(tiny("train.steps=1"), progress=False).step == 1


def test_a_killed_worker(tiny, tmp_path, monkeypatch):
    """A real one, which the system kills while it reads."""
    from torch.utils.data import dataloader

    step = Loop._take_step

    def kill_one(loop):
        if loop.step == 3:
            iterator = next(one for one in kept if isinstance(one, dataloader._MultiProcessingDataLoaderIter))
            os.kill(iterator._workers[0].pid, signal.SIGKILL)
        return step(loop)

    kept = []
    made = dataloader._MultiProcessingDataLoaderIter.__init__

    def keep(self, loader):
        made(self, loader)
        kept.append(self)

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "__init__", keep)
    monkeypatch.setattr(Loop, "_take_step", kill_one)
    overrides = ["data.num_workers=1", "train.validate_every=null", "train.steps=50", "train.save_every=50"]
    with pytest.raises(DataWorkerError, match=r"worker \d+ (was killed by|ended unexpectedly)") as caught:
        train(tiny(*overrides), progress=False)
    (saved,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert f"--resume continues from step {int(saved.name[-6:])}, which is saved" in str(caught.value)
    assert int(saved.name[-6:]) >= 3
