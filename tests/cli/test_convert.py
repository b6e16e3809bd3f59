"""`vla convert`: the command writes what it says, and says why where it does not."""

import json

import pytest
import torch
import typer.testing
from safetensors.torch import load_file

import vla
from tests.cli.info.test_checkpoint import make_policy
from tests.cli.info_rows import rows
from tests.folders import unchanged
from tests.hub_server import TOKEN, serving, speak_to
from tests.policies.conftest import make_robot_policy
from tests.weights.published import renamed
from vla.checkpoints.convert import ConversionReport
from vla.cli import app, main
from vla.cli.info.diff import compare


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")


@pytest.fixture
def policy():
    return make_policy("pi0")


@pytest.fixture
def src(policy, tmp_path):
    policy.save_pretrained(tmp_path / "src")
    return tmp_path / "src"


def failure(argv, capsys, status=1):
    """The line that the command fails with."""
    capsys.readouterr()
    assert main([str(one) for one in argv]) == status
    error = capsys.readouterr().err
    assert status == 2 or error.count("\n") == 1
    return error


@pytest.mark.parametrize("format", ["vla", "lerobot", "transformers", "openpi"])
def test_there_and_back_is_bit_exact(policy, src, tmp_path, capsys, format):
    there, back = tmp_path / format, tmp_path / "back"
    assert main(["convert", str(src), str(there), "--to", format]) == 0
    found = rows(capsys)
    assert found["policy"] == "pi0"
    assert found["format"] == f"vla -> {format}"
    assert "model.safetensors" in found["files"]
    assert main(["convert", str(there), str(back), "--to", "vla"]) == 0
    difference = compare(src, back)
    assert difference.same_weights
    assert difference.config == {}
    assert difference.dtypes == {}


def test_openpi_names_are_those_of_the_published_files(policy, src, tmp_path):
    assert main(["convert", str(src), str(tmp_path / "openpi"), "--to", "openpi"]) == 0
    written = load_file(tmp_path / "openpi" / "model.safetensors")
    for name, tensor in renamed(policy.state_dict(), "openpi").items():
        assert torch.equal(written[name], tensor), name


def test_dtype_and_shards(src, tmp_path, capsys):
    argv = ["convert", str(src), str(tmp_path / "dst"), "--to", "vla", "--dtype", "bfloat16"]
    assert main([*argv, "--max-shard-size", "50KB"]) == 0
    assert "model.safetensors.index.json" in rows(capsys)["files"]
    opened = vla.AutoPolicy.from_pretrained(tmp_path / "dst")
    assert opened.dtype == torch.bfloat16


def test_statistics_travel(tmp_path):
    make_robot_policy().save_pretrained(tmp_path / "src")
    for format in ("lerobot", "openpi", "transformers"):
        assert main(["convert", str(tmp_path / "src"), str(tmp_path / format), "--to", format]) == 0
        opened = vla.load(tmp_path / format)
        assert opened.policy.config.cameras == ("top", "wrist")


def test_fields_that_the_source_does_not_record(src, tmp_path, capsys):
    argv = ["convert", str(src), str(tmp_path / "dst"), "--to", "vla"]
    assert main([*argv, "--set", "action_horizon=3", "--set", "wrist_cameras=[base_0_rgb]"]) == 0
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert config["action_horizon"] == 3
    assert config["wrist_cameras"] == ["base_0_rgb"]
    before = json.loads((src / "config.json").read_text())["action_horizon"]
    notes = " ".join(value for name, value in rows(capsys).items() if name.startswith("note"))
    assert f"action_horizon is 3 as given, not {before} as the source says" in notes
    assert "wrist_cameras is ['base_0_rgb'] as given, not" in notes


def test_from_the_hub(src, tmp_path, monkeypatch):
    with serving() as hub:
        speak_to(hub.url, monkeypatch, tmp_path / "cache")
        repo = hub.add("me/cup", {"README.md": b""}, needs_token=True)
        repo.branches["v2"] = {path.name: path.read_bytes() for path in src.iterdir()}
        argv = ["convert", "me/cup", str(tmp_path / "dst"), "--to", "openpi"]
        assert main([*argv, "--revision", "v2", "--token", TOKEN]) == 0
    assert compare(src, tmp_path / "dst").same_weights


class TestRefusals:
    def test_target_that_is_there(self, src, tmp_path, capsys):
        (tmp_path / "dst").mkdir()
        (tmp_path / "dst" / "precious").touch()
        assert "dst is already there" in failure(["convert", src, tmp_path / "dst", "--to", "vla"], capsys)
        (tmp_path / "file").touch()
        assert "file is already there" in failure(["convert", src, tmp_path / "file", "--to", "vla"], capsys)
        assert [path.name for path in (tmp_path / "dst").iterdir()] == ["precious"]

    def test_source_that_is_not_there(self, tmp_path, capsys):
        error = failure(
            ["convert", tmp_path / "none" / "at" / "all", tmp_path / "dst", "--to", "vla"], capsys
        )
        assert "none/at/all is not a folder here" in error

    def test_damaged_source_leaves_nothing(self, src, tmp_path, capsys):
        weights = src / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4])
        with unchanged(tmp_path):
            assert "model.safetensors" in failure(["convert", src, tmp_path / "dst", "--to", "vla"], capsys)

    def test_format_that_does_not_exist(self, src, tmp_path, capsys):
        error = failure(["convert", src, tmp_path / "dst", "--to", "onnx"], capsys, status=2)
        assert "lerobot" in error

    def test_format_that_the_policy_does_not_have(self, tmp_path, capsys):
        make_policy("pi05").save_pretrained(tmp_path / "src")
        argv = ["convert", tmp_path / "src", tmp_path / "dst", "--to", "transformers"]
        assert "transformers" in failure(argv, capsys)
        assert not (tmp_path / "dst").exists()

    def test_format_is_asked_for(self, src, tmp_path, capsys):
        assert "--to" in failure(["convert", src, tmp_path / "dst"], capsys, status=2)

    @pytest.mark.parametrize("entry", ["action_horizon", "=3", "cameras=[a"])
    def test_field_that_is_none(self, src, tmp_path, capsys, entry):
        argv = ["convert", src, tmp_path / "dst", "--to", "vla", "--set", entry]
        assert f"--set {'takes' if '[' not in entry else entry}" in failure(argv, capsys)

    def test_unknown_field(self, src, tmp_path, capsys):
        argv = ["convert", src, tmp_path / "dst", "--to", "vla", "--set", "action_horizn=3"]
        assert "action_horizn" in failure(argv, capsys)


def test_every_option_reaches_the_conversion(tmp_path, monkeypatch):
    calls = []

    def convert(*args, **kwargs):
        kwargs.pop("progress")(1, 2)
        calls.append((args, kwargs))
        return ConversionReport("pi0", "openpi-jax", "vla", 1, 2, 8, ("a",), {"b": "unused"}, ("Mind it.",))

    monkeypatch.setattr("vla.checkpoints.convert.convert", convert)
    dst = tmp_path / "dst"
    argv = ["convert", "a/b", str(dst), "--to", "vla", "--dtype", "float16", "--max-shard-size", "2GB"]
    argv += ["--asset-id", "trossen", "--tokenizer", "c/d", "--set", "action_horizon=10"]
    argv += ["--revision", "v1", "--token", "hf_x", "--pipeline", "left"]
    result = typer.testing.CliRunner().invoke(app, argv, env={"COLUMNS": "2000"})
    assert result.exit_code == 0, result.output
    expected = {
        "dtype": "float16",
        "max_shard_size": "2GB",
        "asset_id": "trossen",
        "tokenizer": "c/d",
        "config": {"action_horizon": 10},
        "revision": "v1",
        "token": "hf_x",
        "pipeline": "left",
    }
    assert calls == [(("a/b", dst, "vla"), expected)]
    for fact in ("openpi-jax -> vla", "1, 2 parameters", "b (unused)", "Mind it."):
        assert fact in result.output
