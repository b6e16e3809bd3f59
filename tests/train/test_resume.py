"""A run that was killed and resumed is, from there on, the run that was never killed."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import free_port
from tests.train.conftest import numbers, tiny_overrides, training_tensors
from vla.errors import TrainingError
from vla.train import load_recipe, train
from vla.train.checkpoint.on_disk import load_training_state
from vla.train.monitor.metrics import read_metrics

CASES = {
    # name: (where it is killed, at which count, expected exit status, overrides)
    "workers-0": ("step", 5, -9, ["data.num_workers=0"]),
    "workers-1": ("step", 5, -9, ["data.num_workers=1"]),
    "accumulate-workers-0": ("step", 4, -9, ["data.num_workers=0", "train.accumulation=2"]),
    "accumulate-workers-1": ("step", 4, -9, ["data.num_workers=1", "train.accumulation=2"]),
    "while-saving": ("save", 2, -9, []),
    "terminated-with-its-workers": ("group", 2, 7, ["data.num_workers=1", "train.accumulation=6"]),
}
SLOW = ["workers-1", "accumulate-workers-0"]
# Means over 4 steps, so that every kill falls between two records.
COMMON = ["train.log_every=4"]


def run_and_kill(folder, cases):
    """Run cases in processes forked from one; return their exit statuses and what they said."""
    file = folder / "cases.json"
    file.write_text(json.dumps(cases))
    ran = subprocess.run(
        [sys.executable, "-m", "tests.train.killed_runs", str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    # Some releases of PyTorch let gloo speak on the same stream.
    return [int(line) for line in re.findall(r"^-?\d+$", ran.stdout, re.MULTILINE)], ran.stderr


def run_named(folder, dataset, names, further=()):
    """Run cases by name, and further ones; return the statuses of the latter."""
    cases = [
        [{"where": where, "at": at, "recipe": [*tiny_overrides(dataset, folder / name), *COMMON, *extra]}]
        for name in names
        for where, at, _, extra in [CASES[name]]
    ]
    statuses, said = run_and_kill(folder, [*cases, *further])
    assert statuses[: len(names)] == [CASES[name][2] for name in names], said
    return statuses[len(names) :]


@pytest.fixture(scope="module")
def killed(dataset, tmp_path_factory):
    """Folder with one killed run per case of the default tests."""
    folder = tmp_path_factory.mktemp("killed")
    assert run_named(folder, dataset, [name for name in CASES if name not in SLOW]) == []
    return folder


@pytest.fixture(scope="module")
def killed_too(killed, dataset):
    """The same folder, with the cases of the slow tests, and runs of two processes."""
    pairs = [
        pair([*tiny_overrides(dataset, killed / "whole-pair"), "train.batch_size=2"], None),
        pair([*tiny_overrides(dataset, killed / "pair"), "train.batch_size=2"], "step"),
        pair([*tiny_overrides(dataset, killed / "pair"), "train.batch_size=2"], None, resume=True),
    ]
    assert run_named(killed, dataset, SLOW, pairs) == [0, 0, -9, -9, 0, 0]
    return killed


def pair(recipe, where, resume=False):
    """Two processes that train together, and are killed together."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        {
            "recipe": recipe,
            "where": where,
            "at": 5,
            "resume": resume,
            "environment": {**shared, "RANK": rank, "LOCAL_RANK": rank},
        }
        for rank in "01"
    ]


@pytest.fixture(scope="module")
def unbroken(dataset, tmp_path_factory):
    """Folder of the run that was never killed, by accumulation."""
    folder = tmp_path_factory.mktemp("unbroken")
    threads = torch.get_num_threads()
    for accumulation in (1, 2, 6):
        overrides = [*COMMON, f"train.accumulation={accumulation}"]
        recipe = load_recipe(None, [*tiny_overrides(dataset, folder / str(accumulation)), *overrides])
        train(recipe, progress=False)
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
)
def test_resumed_run_equals_the_unbroken_one(request, killed, unbroken, dataset, name):
    if name in SLOW:
        request.getfixturevalue("killed_too")
    *_, extra = CASES[name]
    overrides = [*tiny_overrides(dataset, killed / name), *COMMON, *extra]
    before = len(read_metrics(killed / name / "metrics.jsonl"))
    result = train(load_recipe(None, overrides), resume=True, progress=False)
    assert (result.step, result.stopped_by_signal) == (6, False)
    whole = unbroken / str(load_recipe(None, overrides).train.accumulation)
    assert before < len(numbers(whole))
    assert numbers(killed / name) == numbers(whole)
    ours, theirs = (run / "checkpoints" / "last" for run in (killed / name, whole))
    assert_equal(load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors"))
    assert_equal(load_training_state(ours), load_training_state(theirs))
    assert_equal(training_tensors(ours), training_tensors(theirs))
    assert not list((killed / name / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_two_processes_resume_like_one(killed_too):
    resumed, whole = (killed_too / name for name in ("pair", "whole-pair"))
    assert [r["step"] for r in numbers(whole) if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert numbers(resumed) == numbers(whole)
    ours, theirs = (run / "checkpoints" / "last" / "model.safetensors" for run in (resumed, whole))
    assert_equal(load_file(ours), load_file(theirs))


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert a == b


def test_finished_run_can_go_on(tiny):
    train(tiny("train.decay_steps=8"), progress=False)
    whole = train(tiny("train.decay_steps=8", "train.steps=8", output="whole"), progress=False)
    result = train(tiny("train.decay_steps=8", "train.steps=8"), resume=True, progress=False)
    assert result.step == 8
    assert numbers(result.folder) == numbers(whole.folder)


def test_resuming_a_finished_run_changes_nothing(tiny):
    first = train(tiny("train.steps=2"), progress=False)
    before = numbers(first.folder)
    again = train(tiny("train.steps=2"), resume=True, progress=False)
    assert (again.step, again.checkpoint) == (2, first.checkpoint)
    assert numbers(first.folder) == before


def test_other_recipe_is_refused(tiny):
    train(tiny("train.steps=2"), progress=False)
    with pytest.raises(TrainingError, match=r"train\.learning_rate \(was 0\.001, now 0\.002\)"):
        train(tiny("train.learning_rate=2e-3"), resume=True, progress=False)


def test_nothing_to_resume(tiny, tmp_path):
    with pytest.raises(TrainingError, match="no complete checkpoint"):
        train(tiny(), resume=True, progress=False)
    assert not (tmp_path / "run").exists()


def test_other_number_of_processes_is_refused(tiny):
    checkpoint = train(tiny("train.steps=2"), progress=False).checkpoint
    state = load_training_state(checkpoint)
    torch.save({**state, "processes": 2}, checkpoint / "training_state.pt")
    with pytest.raises(TrainingError, match="by 2 processes"):
        train(tiny(), resume=True, progress=False)


def test_changed_dataset_is_refused(tiny):
    checkpoint = train(tiny("train.steps=2"), progress=False).checkpoint
    path = checkpoint / "statistics.json"
    statistics = json.loads(path.read_text())
    path.write_text(json.dumps({**statistics, "source": "another"}))
    with pytest.raises(TrainingError, match="changed since"):
        train(tiny(), resume=True, progress=False)
