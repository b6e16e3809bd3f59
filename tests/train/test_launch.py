"""Real launches: what `accelerate launch` with the recipes of this repository makes of `vla train`."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.processes import free_port
from tests.train.conftest import tiny_overrides
from vla.train import load_recipe, train
from vla.train.checkpoint.on_disk import checkpoint_step, list_checkpoints
from vla.train.monitor.metrics import read_metrics

ROOT = Path(__file__).parents[2]
# eps: as in engine_runs.py.
COMMON = ["train.batch_size=2", "train.total_batch_size=4", "train.eps=1e-6"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(torch.accelerator.is_available(), reason="says what happens where there is no GPU"),
]


@pytest.fixture(scope="module")
def recipe(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(load_recipe(None, [*tiny_overrides(dataset, "unset"), *COMMON]).to_yaml())
    return path


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """Folder of the run of one process."""
    folder, threads = tmp_path_factory.mktemp("whole") / "run", torch.get_num_threads()
    train(load_recipe(recipe, ["train.accumulation=2", f"output={folder}"]), progress=False)
    torch.set_num_threads(threads)
    return folder


def launch(config, recipe, *overrides):
    """Start two processes as a user would, and return the launcher."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port"]
    command += [free_port(), "--config_file", f"recipes/accelerate/{config}.yaml", "--num_processes", "2"]
    command += ["-m", "vla", "train", str(recipe), *overrides]
    output = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=output, stderr=subprocess.STDOUT)


def losses(folder):
    names = ("step", "loss", "action_loss", "text_loss", "validation_loss")
    return [
        {k: v for k, v in record.items() if k in names} for record in read_metrics(folder / "metrics.jsonl")
    ]


# DeepSpeed compiles an operator for a minute or two, once on a machine.
@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_two_processes_train_as_one(recipe, whole, tmp_path, engine):
    if engine == "zero2" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed (extra: deepspeed)")
    folder = tmp_path / "run"
    launcher = launch(engine, recipe, f"output={folder}")
    output, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, output
    assert f"policy: {folder}/checkpoints/step-000006" in output
    (start,) = json.loads((folder / "reproduce.json").read_text())["starts"]
    assert (start["engine"], start["processes"]) == (engine, 2)
    ours, theirs = losses(folder), losses(whole)
    assert len(ours) == len(theirs) == 8  # six steps and two validations
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    ours, theirs = (load_file(run / "checkpoints" / "last" / "model.safetensors") for run in (folder, whole))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=0)


def test_what_cannot_be_sharded_is_refused(recipe, tmp_path):
    launcher = launch("fsdp2", recipe, f"output={tmp_path / 'run'}")
    output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode != 0
    assert "launched for fsdp, but runs as ddp with 2 processes on cpu: nothing would be sharded" in output
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_process_ends_the_launch(recipe, tmp_path, rank):
    folder = tmp_path / "run"
    launcher = launch("ddp", recipe, f"output={folder}", "train.steps=100000", "train.keep_last=3")
    deadline = time.monotonic() + 300
    while len(list_checkpoints(folder / "checkpoints")) < 2:
        assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    processes = psutil.Process(launcher.pid).children(recursive=True)
    (victim,) = [one for one in processes if one.environ().get("RANK") == rank]
    victim.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    output, _ = launcher.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert launcher.returncode != 0
    assert "Another process of this run has died" in output
    assert not any(map(psutil.pid_exists, [one.pid for one in processes]))
    newest = list_checkpoints(folder / "checkpoints")[-1]
    assert os.readlink(folder / "checkpoints" / "last") == newest.name
    steps = checkpoint_step(newest) + 2
    overrides = [f"train.steps={steps}", "train.accumulation=2", "train.keep_last=3", f"output={folder}"]
    result = train(load_recipe(recipe, overrides), resume=True, progress=False)
    assert (result.step, result.stopped_by_signal) == (steps, False)
    assert sorted(path.name for path in (folder / "checkpoints").glob(".*")) == []
