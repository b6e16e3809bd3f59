"""What `vla info` says of an adapter, and where its base may be named."""

import json
import shutil

import pytest
import torch

from tests.cli.info_rows import rows
from tests.policies.conftest import make_robot_policy
from vla.adapters.files import load_adapter
from vla.adapters.lora import AdapterConfig, add_adapter, fingerprint
from vla.cli import main
from vla.cli.info import adapter
from vla.errors import ConfigError, WeightsError
from vla.policies.auto import AutoPolicy, load


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A policy as `base`, and `run`, whose checkpoint is an adapter of it; read only."""
    folder = tmp_path_factory.mktemp("adapter")
    make_robot_policy().save_pretrained(folder / "base")
    policy = AutoPolicy.from_pretrained(folder / "base")
    torch.manual_seed(0)
    add_adapter(policy, AdapterConfig(rank=2, alpha=8))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    policy.save_pretrained(folder / "run" / "checkpoints" / "step-000010")
    return folder


@pytest.fixture
def moved(folders, tmp_path):
    """Copies, so that the base lies where the adapter does not look for it."""
    shutil.copytree(folders / "run", tmp_path / "run")
    shutil.copytree(folders / "base", tmp_path / "moved")
    path = tmp_path / "run" / "checkpoints" / "step-000010" / "adapter_base.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": str(tmp_path / "gone")}))
    return tmp_path


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")


def described(capsys, *argv):
    capsys.readouterr()
    assert main(["info", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_is_described(folders, capsys):
    values = described(capsys, folders / "run")
    policy = AutoPolicy.from_pretrained(folders / "run")
    trained = {name: one for name, one in policy.named_parameters() if "lora_" in name}
    whole = [one for name, one in policy.named_parameters() if "modules_to_save" in name]
    assert (values["kind"], values["rank"], values["alpha"], values["policy"]) == ("LoRA", 2, 8, "pi0")
    assert len(values["layers"]) == sum("lora_A" in name for name in trained) > 0
    assert f"{values['layers'][0]}.lora_A.default.weight" in trained
    assert values["parameters"] == sum(one.numel() for one in [*trained.values(), *whole])
    assert values["base"] == values["base_found"] == str(folders / "base")
    assert values["fingerprint"] == fingerprint(AutoPolicy.from_pretrained(folders / "base"))
    assert values["statistics"]["features"]["state"]["width"] == 3
    assert values["base_problem"] is None
    capsys.readouterr()
    assert main(["info", str(folders / "run")]) == 0
    said = rows(capsys)
    assert said["rank"] == "2"
    assert said["base found"] == f"in {folders / 'base'}"
    assert "normalize" in said["pipeline"]


def test_base_that_is_gone_is_said(moved, capsys):
    values = described(capsys, moved / "run")
    assert values["base_found"] is None
    assert "gone" in values["base_problem"]
    assert described(capsys, moved / "run", "--base", moved / "moved")["base_found"] == str(moved / "moved")


def test_base_in_the_library(folders, moved):
    with pytest.raises(WeightsError, match=r"needs its base .*gone.*base=WHERE, `--base WHERE`"):
        load(moved / "run")
    ours = load(moved / "run", base=moved / "moved").policy.state_dict()
    theirs = AutoPolicy.from_pretrained(folders / "run").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(ConfigError, match="holds a whole policy, not an adapter"):
        load(moved / "moved", base=moved / "moved")
    other = AutoPolicy.from_pretrained(folders / "base")
    load_adapter(other, moved / "run")
    assert other.adapter is not None


def test_converted_with_its_base_is_what_was_trained(folders, moved, capsys):
    argv = ["convert", str(moved / "run"), str(moved / "whole"), "--to", "vla"]
    assert main(argv) == 1
    assert "needs its base" in capsys.readouterr().err
    assert main([*argv, "--base", str(moved / "moved")]) == 0
    merged, trained = AutoPolicy.from_pretrained(moved / "whole"), AutoPolicy.from_pretrained(folders / "run")
    name = described(capsys, folders / "run")["layers"][0]
    layer = trained.get_submodule(name)
    update = layer.get_delta_weight("default")  # type: ignore[operator]
    expected = layer.base_layer.weight + update  # type: ignore[operator]
    torch.testing.assert_close(merged.get_submodule(name).weight, expected)
    assert main([*argv[:1], str(moved / "moved"), str(moved / "x"), "--to", "vla", "--base", "y"]) == 1
    assert "--base is about adapters" in capsys.readouterr().err


def test_bench_takes_a_base(moved, capsys):
    argv = ["bench", "--policy", str(moved / "run"), "--no-train", "--rounds", "1"]
    assert main([*argv, "--base", str(moved / "nowhere" / "at" / "all")]) == 1
    assert "needs its base" in capsys.readouterr().err
    assert main(["bench", "--preset", "tiny", "--base", str(moved / "moved")]) == 1
    assert "base is about adapters" in capsys.readouterr().err


FIELDS = [
    "alpha_pattern", "base_model_name_or_path", "bias", "lora_alpha", "lora_dropout", "modules_to_save",
    "peft_type", "r", "rank_pattern", "target_modules", "use_dora", "use_rslora",
]  # fmt: skip


def test_a_field_of_the_config_of_another_kind_is_described_or_refused(moved, monkeypatch):
    monkeypatch.setattr(adapter, "_find_base", lambda *_: None)  # it says nothing of these fields
    path = moved / "run" / "checkpoints" / "step-000010" / "adapter_config.json"
    whole = json.loads(path.read_text())
    assert set(FIELDS) <= set(whole)
    refused = set()
    for name in FIELDS:
        for value in (None, [None], [["a"]], {"a": None}, -1, "x"):
            path.write_text(json.dumps(whole | {name: value}))
            try:
                words = adapter.in_words(adapter.inspect_adapter(path.parent))
                assert all(isinstance(word, str) for word in words.values())
            except WeightsError as error:
                refused.add((name, str(path) in str(error)))
    assert refused == {
        (name, True) for name in ("modules_to_save", "target_modules", "r", "lora_alpha", "peft_type")
    }
