import errno
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import PurePosixPath

import pytest
import torch

from tests.folders import contents_of, unchanged
from vla.errors import TrainingError
from vla.train.checkpoint import on_disk as checkpoints
from vla.train.checkpoint.on_disk import (
    checkpoint_step,
    list_checkpoints,
    load_training_state,
    prune_checkpoints,
    remove_unfinished,
    save_checkpoint,
)
from vla.train.rescue import chain_of

STATE = {"step": 3, "loader": {"epoch": 1, "batch": 2}, "weights": torch.arange(4.0)}


def write_policy(folder):
    (folder / "model.safetensors").write_text("weights")


def save(folder, step, write=write_policy):
    return save_checkpoint(folder, step, write, STATE, {"recipe.yaml": "a: 1\n"})


def contents(folder):
    return sorted(path.name for path in folder.iterdir())


def test_saved_is_loaded(tmp_path):
    (tmp_path / "run").mkdir()
    path = save(tmp_path / "run" / "checkpoints", 3)
    assert contents(path) == ["model.safetensors", "recipe.yaml", "training_state.pt"]
    state = load_training_state(path)
    assert state["loader"] == STATE["loader"]
    assert torch.equal(state["weights"], STATE["weights"])


def test_last_points_at_the_newest(tmp_path):
    save(tmp_path, 3)
    save(tmp_path, 12)
    assert (tmp_path / "last").resolve() == tmp_path / "step-000012"
    assert contents(tmp_path) == ["last", "step-000003", "step-000012"]


def test_checkpoints_are_listed_by_number(tmp_path):
    for step in (1_000_000, 5, 999_999):
        save(tmp_path, step)
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path)] == [5, 999_999, 1_000_000]
    assert list_checkpoints(tmp_path / "absent") == []


def test_incomplete_folders_are_no_checkpoints(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step-000002").mkdir()
    (tmp_path / "step-2").mkdir()
    (tmp_path / ".step-000003.ab12.tmp").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000001"]


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4]), (None, [1, 2, 3, 4])])
def test_pruning_keeps_the_newest(tmp_path, keep, left):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, keep)
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path)] == left
    assert len(contents(tmp_path)) == len(left) + 1


def test_pruning_leaves_what_adapters_rest_on(tmp_path, caplog):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "step-000001" / "adapters.json").write_text('{"adapters": ["/runs/cup"]}')
    with unchanged(tmp_path / "step-000001"):
        for step in (3, 4, 5):
            prune_checkpoints(tmp_path, 2)
            save(tmp_path, step)
        prune_checkpoints(tmp_path, 2)
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path)] == [1, 4, 5]
    assert caplog.text.count("step-000001 stays, beyond keep_last: adapters rest on it") == 1
    assert "/runs/cup" in caplog.text


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    kept = [save(tmp_path, 1).name, "last", ".mine", ".step-notes"]
    for name in (".mine", ".step-notes", ".step-000002.0a1b2c3d.tmp", ".step-000001.removed.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".last.tmp").symlink_to("step-000002")
    remove_unfinished(tmp_path)
    assert contents(tmp_path) == sorted(kept)


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_half(folder):
    write_policy(folder)
    no_space()


@pytest.mark.parametrize("place", ["policy", "state", "flush", "rename", "last"])
def test_full_disk_leaves_the_previous_checkpoint_alone(tmp_path, monkeypatch, place):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        if place == "state":
            patch.setattr(torch, "save", no_space)
        elif place == "flush":
            patch.setattr(os, "fsync", no_space)
        elif place == "rename":
            patch.setattr(os, "replace", no_space)
        elif place == "last":
            patch.setattr(checkpoints, "point_last_at", no_space)
        with pytest.raises(TrainingError, match="disk is full") as caught:
            save(tmp_path, 2, write_half if place == "policy" else write_policy)
    assert "step-000002" in str(caught.value) or place == "last"
    whole = ["last", "step-000001"] + ["step-000002"] * (place == "last")
    assert contents(tmp_path) == whole
    assert (tmp_path / "last").resolve().name == "step-000001"
    assert load_training_state(tmp_path / "step-000001")["step"] == 3


REAL_LIMIT = """
import resource, signal, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from vla.errors import TrainingError
from vla.train.checkpoint.on_disk import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
small, large = {"x": torch.zeros(10)}, {"x": torch.zeros(100_000)}
for policy, state in ((large, small), (small, large)):
    try:
        save_checkpoint(Path(sys.argv[1]), 1, lambda p: save_file(policy, p / "model.safetensors"), state, {})
    except TrainingError as error:
        print(error)
"""


def test_the_system_refusing_a_write_is_one_error_each_time(tmp_path):
    # A real limit on file size, since the libraries below report a failed write in ways of their own.
    ran = subprocess.run(
        [sys.executable, "-c", REAL_LIMIT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    lines = ran.stdout.splitlines()
    assert len(lines) == 2
    assert all("step-000001" in line and "File too large" in line for line in lines), lines
    assert contents(tmp_path) == []


def test_damaged_state_says_what_to_do(tmp_path):
    path = save(tmp_path, 1)
    (path / "training_state.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(TrainingError, match=r"step-000001/training_state\.pt cannot be read"):
        load_training_state(path)


@pytest.mark.parametrize("how", ["foreign", "cut", "half", "text", "zeros"])
def test_a_state_that_is_none_is_told_of_without_advice_for_programmers(tmp_path, how):
    path = save(tmp_path, 1)
    file = path / "training_state.pt"
    whole = file.read_bytes()
    pickled = pickle.dumps(PurePosixPath("x"))  # a class that vla does not write
    made = {"foreign": pickled, "cut": whole[:100], "half": whole[: len(whole) // 2], "text": b"not a state"}
    file.write_bytes(made.get(how, bytes(300)))
    with unchanged(tmp_path), pytest.raises(TrainingError) as caught:
        load_training_state(path)
    said = (
        "damaged, or ends too early" if how in ("cut", "half") else "not a file that vla wrote, or is damaged"
    )
    assert str(caught.value) == f"{file} cannot be read (it is {said})."


def test_any_flipped_bit_of_a_state_is_found_or_harmless(tmp_path):
    path = save(tmp_path, 1)
    file, before = path / "training_state.pt", load_training_state(path)
    whole = file.read_bytes()
    refused = 0
    for at in range(0, len(whole), 5):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            found = load_training_state(path)
        except TrainingError:
            refused += 1
        else:
            assert repr(found) == repr(before)
    assert refused > len(whole) / 50
    at = whole.index(b"step") + 2  # inside what is pickled
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
    with unchanged(tmp_path), pytest.raises(TrainingError, match=r"cannot be read \(.*data\.pkl"):
        load_training_state(path)


@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize("how", ["moved", "removed"])
@pytest.mark.parametrize("anew", [False, True])
def test_a_run_that_was_moved_does_not_come_back(tmp_path, when, how, anew):
    run, elsewhere = tmp_path / "runs" / "t", tmp_path / "elsewhere"
    run.mkdir(parents=True)
    saved = save_checkpoint(run / "checkpoints", 1, write_policy, {"step": 1}, {}).name
    whole = contents_of(run)

    def lose():
        run.rename(elsewhere)
        if how == "removed":
            shutil.rmtree(elsewhere)

    def write(partial):
        if when == "while":
            lose()
        if anew:
            partial.mkdir(parents=True, exist_ok=True)  # as libraries do
        write_policy(partial)

    if when == "before":
        lose()
    with pytest.raises(TrainingError, match="step-000002") as caught:
        save_checkpoint(run / "checkpoints", 2, write, {"step": 2}, {})
    assert any(isinstance(one, FileNotFoundError) for one in chain_of(caught.value))
    assert list((tmp_path / "runs").iterdir()) == []
    if how == "moved":
        assert contents_of(elsewhere) == whole
        assert [one.name for one in list_checkpoints(elsewhere / "checkpoints")] == [saved]


def test_the_folder_above_a_run_does_not_come_back_either(tmp_path):
    (tmp_path / "runs" / "t").mkdir(parents=True)

    def write(partial):
        (tmp_path / "runs" / "t").rename(tmp_path / "t")
        (tmp_path / "runs").rmdir()
        partial.mkdir(parents=True)

    with pytest.raises(TrainingError, match="a folder above it was moved or removed while it was written"):
        save_checkpoint(tmp_path / "runs" / "t" / "checkpoints", 2, write, {"step": 2}, {})
    assert contents(tmp_path) == ["t"]
