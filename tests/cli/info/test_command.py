"""`vla info`: checkpoints from their files alone, datasets by opening them."""

import json

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from tests.cli.info_rows import rows
from tests.data.make import make_dataset
from tests.folders import unchanged
from tests.hub_server import TOKEN, serving, speak_to
from vla.cli import main
from vla.weights.known import known_checkpoints


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = {"model_type": "some_policy", "action_horizon": 7, "cameras": ["top", "wrist"]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}, folder / "model.safetensors")
    return folder


def test_checkpoint_is_described_from_its_files(checkpoint, capsys):
    (checkpoint / "pipeline.json").write_text(json.dumps({"steps": [{"type": "one"}, {"type": "two"}]}))
    assert main(["info", str(checkpoint)]) == 0
    found = rows(capsys)
    assert found["format"] == "unknown"
    assert "is not a checkpoint of a policy known here" in found["does not load"]
    assert found["policy"] == "some_policy"
    assert found["action horizon"] == "7"
    assert found["cameras"] == "top, wrist"
    assert found["parameters"] == "17 in 2 tensors"
    assert found["weights"].startswith("float32; 0.0 MB in 1 file(s)")
    assert found["pipeline"] == "one -> two"
    assert found["statistics"] == "none"


def test_run_folder_stands_for_its_last_checkpoint(checkpoint, tmp_path, capsys):
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    (run / "last").symlink_to(checkpoint)
    assert main(["info", str(run.parent)]) == 0
    assert rows(capsys)["policy"] == "some_policy"


def test_checkpoint_without_weights_or_pipeline_says_so(checkpoint, capsys):
    (checkpoint / "model.safetensors").unlink()
    assert main(["info", str(checkpoint)]) == 0
    found = rows(capsys)
    assert found["weights"] == "none"
    assert found["does not load"] == "There are no weights in it."
    assert found["pipeline"].startswith("none")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[]", "must hold a JSON object, got a list"),
        ("pipeline.json", b"nonsense", "pipeline.json is not JSON"),
        ("statistics.json", b"{}", "statistics.json does not hold statistics"),
        ("model.safetensors", b"short", "model.safetensors"),
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
    error = capsys.readouterr().err
    assert "model.safetensors" in error
    assert error.count("\n") == 1


def test_pickles_and_adapters_are_refused_by_name(tmp_path, capsys):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert main(["info", str(tmp_path)]) == 1
    assert "pytorch_model.bin" in capsys.readouterr().err
    save_file({"lora_A": np.zeros(3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert main(["info", str(tmp_path)]) == 1
    assert "LoRA adapter" in capsys.readouterr().err


def test_folder_that_is_neither(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "neither a checkpoint (config.json, weights) nor a dataset (meta/info.json)" in error


def test_a_table_without_hf_in_front(tmp_path, capsys):
    (tmp_path / "rows.parquet").touch()
    with unchanged(tmp_path):
        assert main(["info", str(tmp_path)]) == 1
    assert f"It holds a table of `datasets`, which is named with 'hf:' in front: hf:{tmp_path}." in (
        capsys.readouterr().err
    )


def test_nothing_there(tmp_path, capsys):
    assert main(["info", str(tmp_path / "none" / "at" / "all")]) == 1
    error = capsys.readouterr().err
    assert "none/at/all is not a folder here" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_dataset_is_described(version, tmp_path, capsys):
    make_dataset(tmp_path / "data", version=version, episodes=3, length=[5, 7, 6], state_dim=3, action_dim=2)
    assert main(["info", str(tmp_path / "data")]) == 0
    found = rows(capsys)
    assert found["version"] == version
    assert found["episodes"] == "3, of 5 to 7 frames, median 6"
    assert found["frames"] == "18"
    assert found["cameras"] == "observation.images.top, observation.images.wrist"
    assert found["state"] == "3 values"
    assert found["action"] == "2 values"
    assert found["tasks"] == "put the cup on the plate; open the drawer"


def test_damaged_dataset_is_one_line(tmp_path, capsys):
    make_dataset(tmp_path / "data", episodes=1, length=5)
    next((tmp_path / "data" / "data").rglob("*.parquet")).write_bytes(b"PAR1")
    assert main(["info", str(tmp_path / "data")]) == 1
    error = capsys.readouterr().err
    assert ".parquet" in error
    assert error.count("\n") == 1


def test_dataset_as_json(tmp_path, capsys):
    make_dataset(tmp_path / "data", episodes=2, length=5, state_dim=3, action_dim=2)
    assert main(["info", str(tmp_path / "data"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["kind"] == "dataset"
    assert values["episodes"] == 2
    assert values["episode_length"] == {"min": 5, "median": 5, "max": 5}
    assert values["action_dim"] == 2


def test_memory_is_not_asked_of_a_dataset(tmp_path, capsys):
    make_dataset(tmp_path / "data", episodes=1, length=5)
    assert main(["info", str(tmp_path / "data"), "--memory"]) == 1
    assert "--memory is about checkpoints" in capsys.readouterr().err


class TestKnown:
    def test_table_lists_all(self, capsys):
        assert main(["info", "known"]) == 0
        printed = capsys.readouterr().out
        for name, known in known_checkpoints().items():
            line = next(line for line in printed.splitlines() if line.startswith(f"{name}: "))
            assert known.format in line
            assert f"    {known.id}\n" in printed
        assert "14.5 GB, licence gemma" in printed

    def test_json_has_the_notes(self, capsys):
        assert main(["info", "known", "--json"]) == 0
        values = json.loads(capsys.readouterr().out)
        assert [one["name"] for one in values] == list(known_checkpoints())
        assert all(one["notes"] and one["provenance"] for one in values)

    def test_folder_of_that_name(self, checkpoint, monkeypatch, capsys):
        checkpoint.rename(checkpoint.parent / "known")
        monkeypatch.chdir(checkpoint.parent)
        assert main(["info", "./known"]) == 0
        assert rows(capsys)["policy"] == "some_policy"

    @pytest.mark.parametrize("name", ["openpi_pi0_base", "gs://openpi-assets/checkpoints/pi0_base"])
    def test_bucket_says_how_to_download(self, name, capsys):
        assert main(["info", name]) == 1
        assert "gsutil -m cp -r gs://openpi-assets/checkpoints/pi0_base" in capsys.readouterr().err


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch, tmp_path):
        with serving() as hub:
            speak_to(hub.url, monkeypatch, tmp_path / "cache")
            yield hub

    def test_model_is_described_by_its_headers(self, hub, checkpoint, capsys):
        (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n# It\n")
        hub.add("a/policy", checkpoint)
        assert main(["info", "a/policy"]) == 0
        found = rows(capsys)
        assert found["policy"] == "some_policy"
        assert found["parameters"] == "17 in 2 tensors"
        assert found["licence"] == "mit"

    def test_short_name_revision_and_token(self, hub, checkpoint, capsys, monkeypatch):
        repo = hub.add("lerobot/pi0_base", {"README.md": b""}, needs_token=True)
        repo.branches["v2"] = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
        assert main(["info", "pi0_base", "--revision", "v2", "--token", TOKEN]) == 0
        assert rows(capsys)["policy"] == "some_policy"
        assert main(["info", "pi0_base", "--revision", "v2"]) == 1
        assert "hf auth login" in capsys.readouterr().err

    def test_name_that_is_neither_model_nor_dataset(self, hub, capsys):
        assert main(["info", "a/none"]) == 1
        error = capsys.readouterr().err
        assert "a/none is not a folder here, and neither a model nor a dataset on the hub" in error
        assert error.count("\n") == 1

    def test_a_recording_that_was_killed_is_named(self, tmp_path, capsys):
        left = tmp_path / ".rec.abcdefg1.partial"
        (left / "meta").mkdir(parents=True)
        (left / "meta/info.json").write_text('{"total_episodes": 3}')
        assert main(["info", str(tmp_path / "rec")]) == 1
        error = capsys.readouterr().err
        assert f"There is no folder {tmp_path / 'rec'}. {left} is left of a recording" in error
        assert "its 3 finished episodes: rename it to keep it (mv), or remove it." in error

    def test_gated_model_is_not_taken_for_a_dataset(self, hub, checkpoint, capsys):
        hub.add("a/gated", checkpoint, gated=True)
        assert main(["info", "a/gated"]) == 1
        assert "a/gated is gated" in capsys.readouterr().err

    def test_offline(self, hub, monkeypatch, capsys):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert main(["info", "a/policy"]) == 1
        assert "offline mode" in capsys.readouterr().err


OTHERS = (["--diff", "x"], ["--asset-id", "x"], ["--base", "x"], ["--revision", "x"])


@pytest.mark.parametrize("option", OTHERS, ids=lambda option: option[0])
def test_the_list_of_known_checkpoints_takes_no_option_of_one(option, capsys):
    assert main(["info", "known", *option]) == 1
    assert f"{option[0]} is about one checkpoint or dataset" in capsys.readouterr().err
    assert main(["info", "known", "--memory"]) == 1
    assert main(["info", "known", "--json"]) == 0


def test_only_checkpoints_are_compared(checkpoint, tmp_path, capsys):
    make_dataset(tmp_path / "set", version="v3.0", episodes=1)
    for pair in ([tmp_path / "set", checkpoint], [checkpoint, tmp_path / "set"], [tmp_path / "set"] * 2):
        with unchanged(tmp_path):
            assert main(["info", str(pair[0]), "--diff", str(pair[1])]) == 1
        assert f"--diff compares checkpoints, and {tmp_path / 'set'} is a dataset." in capsys.readouterr().err
    for option in ("--base", "--asset-id"):
        assert main(["info", str(checkpoint), "--diff", str(checkpoint), option, "x"]) == 1
        assert f"{option} describes one checkpoint" in capsys.readouterr().err


def test_fingerprints_say_what_they_cover(tmp_path, capsys):
    make_dataset(tmp_path / "set", version="v3.0", episodes=2)
    assert main(["info", str(tmp_path / "set")]) == 0
    assert rows(capsys)["fingerprint"].endswith(" (of all episodes and cameras)")
    assert main(["stats", str(tmp_path / "set")]) == 0
    assert "(fingerprint of all episodes, without cameras)" in capsys.readouterr().out
    assert main(["stats", str(tmp_path / "set"), "--episodes", "0"]) == 0
    assert "(fingerprint of these episodes, without cameras)" in capsys.readouterr().out
