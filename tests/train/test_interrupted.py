"""A run that is interrupted at any write leaves nothing half-written, and ends as it would have ended."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import numbers, tiny_overrides
from vla import atomic
from vla.errors import VlaError
from vla.train import load_recipe, train
from vla.train.checkpoint.on_disk import list_checkpoints
from vla.train.checkpoint.shards import save_file
from vla.train.monitor.metrics import read_metrics

SHORT = ["train.steps=2", "train.save_every=1", "train.validate_every=null", "data.validation_fraction=0"]


class Interrupt:
    """Raises at write number `at`: a file is flushed or takes its name, a state or weights are written."""

    def __init__(self, monkeypatch, at, error):
        self.count, self.at, self.error = 0, at, error
        for module, name in (
            (atomic.os, "replace"),
            (atomic.os, "fsync"),
            (torch, "save"),
            (os, "link"),
            (os, "rename"),
            (os, "symlink"),
        ):
            monkeypatch.setattr(module, name, self.around(getattr(module, name)))
        monkeypatch.setattr("vla.train.checkpoint.shards.save_file", self.around(save_file))

    def around(self, function):
        def write(*args, **kwargs):
            self.count += 1
            if self.count == self.at:
                raise self.error
            return function(*args, **kwargs)

        return write


@pytest.fixture
def whole(tiny):
    return train(tiny(*SHORT, output="whole"), progress=False).folder


def interrupted_at(at, tiny, tmp_path, monkeypatch, error):
    """Interrupt a run at a write, check what is left, and finish it; return its folder, None past the end."""
    name = f"run-{at}"
    with monkeypatch.context() as patch:
        interrupt = Interrupt(patch, at, error)
        with suppress(KeyboardInterrupt, SystemExit, VlaError, OSError):
            train(tiny(*SHORT, output=name), progress=False)
    if interrupt.count < at:
        return None
    folder = tmp_path / name
    hidden = [path for path in folder.rglob(".*") if folder.is_dir()]
    assert hidden in ([], [folder / "checkpoints" / ".last.tmp"]), at
    assert not (folder / "running.json").exists()
    resume = bool(list_checkpoints(folder / "checkpoints"))
    return train(tiny(*SHORT, output=name), resume=resume, progress=False).folder


def is_like(folder, whole):
    one, other = (load_file(run / "checkpoints" / "last" / "model.safetensors") for run in (folder, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert numbers(folder) == numbers(whole)
    assert list(folder.rglob(".*")) == []


@pytest.mark.parametrize("at", [1, 4, 9, 14])
def test_interrupted_at_a_write(at, whole, tiny, tmp_path, monkeypatch):
    is_like(interrupted_at(at, tiny, tmp_path, monkeypatch, KeyboardInterrupt()), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left on device")]
)
def test_interrupted_at_every_write(whole, tiny, tmp_path, monkeypatch, error):
    at = 1
    while (folder := interrupted_at(at, tiny, tmp_path, monkeypatch, error)) is not None:
        is_like(folder, whole)
        at += 1
    assert at > 15


def test_a_kill_leaves_hidden_folders_which_resuming_removes(tiny, tmp_path):
    """The names that every writer gives what it has not finished, one written inside another included."""
    folder = train(tiny("train.steps=2"), progress=False).folder
    inner = atomic.temporary_name(atomic.temporary_name(folder / "checkpoints" / "step-000004"))
    for path in (inner, folder / "checkpoints" / ".step-000001.removed.tmp", folder / "plots"):
        path.mkdir()
    for of in ("recipe.yaml", "reproduce.json", "plots/a.png", "metrics.jsonl", "running.json"):
        atomic.temporary_name(folder / of).touch()
    (folder / "checkpoints" / ".last.tmp").symlink_to("gone")
    (folder / ".mine").touch()
    train(tiny("train.steps=2"), resume=True, progress=False)
    assert [path.name for path in folder.rglob(".*")] == [".mine"]


def test_cut_lines_of_the_record_are_repaired(tiny, caplog):
    folder = train(tiny("train.steps=2"), progress=False).folder
    path, before = folder / "metrics.jsonl", read_metrics(folder / "metrics.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        lines[0] + b'{"step": 1, "lo' + lines[1] + b"\0\0\0\n\xff\xfe\n[1]\n" + b'{"step": 2, "l'
    )
    assert read_metrics(path) == before
    assert "3 damaged lines" in caplog.text
    train(tiny("train.steps=3"), resume=True, progress=False)
    assert read_metrics(path)[:2] == before
    for line in path.read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_the_engine_is_made_leaves_nothing(tiny, tmp_path, monkeypatch, number):
    def interrupted(**_):
        assert signal.getsignal(number) != signal.SIG_DFL  # it would end the process, and the claim stay
        signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr("vla.train.engine.Accelerator", interrupted)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(tiny(*SHORT), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_real_signal_during_the_set_up_leaves_nothing(dataset, tmp_path, number):
    (tmp_path / "r.yaml").write_text("{}")
    command = ["-m", "vla", "train", str(tmp_path / "r.yaml"), *tiny_overrides(dataset, tmp_path / "run")]
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "running.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == 128 + number
    if not list_checkpoints(tmp_path / "run" / "checkpoints"):  # else it was training already, and saved
        assert not (tmp_path / "run").exists()
    assert not list(tmp_path.rglob("running.json"))


def test_second_run_over_one_that_died_keeps_its_records(tiny, tmp_path, monkeypatch, caplog):
    def die(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("vla.train.loop.Loop._save", die)
        with pytest.raises(ZeroDivisionError):
            train(tiny(*SHORT), progress=False)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert before
    train(load_recipe(None, tiny_overrides(tiny().data.path, tmp_path / "run") + SHORT), progress=False)
    assert (tmp_path / "run" / "earlier" / "1" / "metrics.jsonl").read_bytes() == before
    assert "started anew; its records are now in" in caplog.text
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 2
