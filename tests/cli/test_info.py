"""`vla info`: checkpoints from their files alone, datasets by opening them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.data.make import make_dataset
from vla.cli import main


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = {"model_type": "some_policy", "action_horizon": 7, "cameras": ["top", "wrist"]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}, folder / "model.safetensors")
    return folder


def lines(capsys):
    return {
        cells[1].strip(): cells[2].strip()
        for line in capsys.readouterr().out.splitlines()
        if len(cells := line.split("│")) == 4
    }


def test_checkpoint_is_described_from_its_files(checkpoint, capsys):
    (checkpoint / "pipeline.json").write_text(json.dumps({"steps": [{"type": "one"}, {"type": "two"}]}))
    assert main(["info", str(checkpoint)]) == 0
    rows = lines(capsys)
    assert rows["policy"] == "some_policy"
    assert rows["action horizon"] == "7"
    assert rows["cameras"] == "top, wrist"
    assert rows["parameters"] == "17 in 2 tensors"
    assert rows["weights"].startswith("F32")
    assert rows["pipeline"] == "one -> two"
    assert rows["statistics"] == "none"


def test_run_folder_stands_for_its_last_checkpoint(checkpoint, tmp_path, capsys):
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    (run / "last").symlink_to(checkpoint)
    assert main(["info", str(run.parent)]) == 0
    assert lines(capsys)["policy"] == "some_policy"


def test_checkpoint_without_weights_or_pipeline_says_so(checkpoint, capsys):
    (checkpoint / "model.safetensors").unlink()
    assert main(["info", str(checkpoint)]) == 0
    rows = lines(capsys)
    assert rows["weights"] == "none"
    assert rows["pipeline"].startswith("none")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[]", "must hold an object"),
        ("pipeline.json", b"nonsense", "pipeline.json is not JSON"),
        ("model.safetensors", b"short", "not a whole safetensors file"),
    ],
)
def test_damaged_checkpoint_is_one_line(checkpoint, file, content, says, capsys):
    (checkpoint / file).write_bytes(content)
    assert main(["info", str(checkpoint)]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_truncated_weights_are_one_line(checkpoint, capsys):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert main(["info", str(checkpoint)]) == 1
    assert "not a whole safetensors file" in capsys.readouterr().err


def test_folder_that_is_neither(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 1
    assert "no checkpoint (config.json) and no dataset (meta/info.json)" in capsys.readouterr().err


def test_nothing_there(tmp_path, capsys):
    assert main(["info", str(tmp_path / "none" / "at" / "all")]) == 1
    assert "There is no" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_dataset_is_described(version, tmp_path, capsys):
    make_dataset(tmp_path / "data", version=version, episodes=3, length=[5, 7, 6], state_dim=3, action_dim=2)
    assert main(["info", str(tmp_path / "data")]) == 0
    rows = lines(capsys)
    assert rows["version"] == version
    assert rows["episodes"] == "3, of 5 to 7 frames, median 6"
    assert rows["frames"] == "18"
    assert rows["cameras"] == "observation.images.top, observation.images.wrist"
    assert rows["state"] == "3 values"
    assert rows["action"] == "2 values"
    assert rows["tasks"] == "put the cup on the plate; open the drawer"


def test_damaged_dataset_is_one_line(tmp_path, capsys):
    make_dataset(tmp_path / "data", episodes=1, length=5)
    next((tmp_path / "data" / "data").rglob("*.parquet")).write_bytes(b"PAR1")
    assert main(["info", str(tmp_path / "data")]) == 1
    error = capsys.readouterr().err
    assert ".parquet" in error
    assert error.count("\n") == 1
