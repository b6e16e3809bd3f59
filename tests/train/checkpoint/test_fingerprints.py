"""Files of a checkpoint are told from those of another by a few of their bytes."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vla.errors import TrainingError
from vla.train.checkpoint.fingerprints import check_fingerprints, fingerprints_of


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "training").mkdir()
    save_file({"a": torch.zeros(5000), "b": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    save_file({}, tmp_path / "training" / "whole.safetensors")
    (tmp_path / "config.json").write_text("{}")
    for name in ("training_state.pt", "recipe.yaml", "README.md"):
        (tmp_path / name).write_text("not of the step")
    return tmp_path


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_what_is_of_the_step(folder):
    kept = fingerprints_of(folder)
    assert kept.keys() == {"config.json", "model.safetensors", "training/whole.safetensors"}
    check_fingerprints(folder, {"step": 3, "files": kept})
    check_fingerprints(folder, {"step": 3})
    (folder / "notes.txt").touch()
    check_fingerprints(folder, {"step": 3, "files": kept})


@pytest.mark.parametrize(
    "change",
    [
        lambda f: flip(f / "config.json", 0),
        lambda f: (f / "config.json").unlink(),
        lambda f: flip(f / "model.safetensors", 0),
        lambda f: flip(f / "model.safetensors", -1),
        lambda f: flip(f / "model.safetensors", -4 * 6 - 1),  # the end of the other tensor
        lambda f: flip(f / "model.safetensors", -4 * 5006),  # and its beginning
        lambda f: (f / "model.safetensors").write_bytes(b""),
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100),
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"x"),
        lambda f: save_file({"a": torch.zeros(1)}, f / "training" / "whole.safetensors"),
    ],
)
def test_what_is_of_another_is_named(folder, change):
    state = {"step": 3, "files": fingerprints_of(folder)}
    change(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match=r"of step 3 was not saved with this \w+(/whole)?\.\w+\."):
        check_fingerprints(folder, state)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "header", ["[]", "{", '{"a": 1}', '{"a": {"data_offsets": 3}}', '{"a": {"data_offsets": ["x", 1]}}']
)
def test_a_header_without_sense_is_a_file_like_any_other(folder, header):
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    first = fingerprints_of(folder)["model.safetensors"]
    flip(path, -1)
    assert fingerprints_of(folder)["model.safetensors"] != first
    assert json.dumps(first)
