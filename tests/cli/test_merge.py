"""`vla merge`: one whole checkpoint of an adapter and its base."""

import pytest
import torch

import vla
from tests.cli.info_rows import rows
from tests.folders import unchanged
from tests.policies.conftest import make_robot_policy
from vla.adapters.lora import add_adapter
from vla.cli import main


@pytest.fixture
def adapter(tmp_path):
    make_robot_policy().save_pretrained(tmp_path / "base")
    policy = vla.AutoPolicy.from_pretrained(tmp_path / "base")
    add_adapter(policy)
    policy.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_merge_writes_a_whole_checkpoint(adapter, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    assert main(["merge", str(adapter), str(tmp_path / "dst"), "--dtype", "bfloat16"]) == 0
    found = rows(capsys)
    assert found["policy"] == "Pi0Policy"
    assert "bfloat16" in found["weights"]
    opened = vla.load(tmp_path / "dst").policy
    assert (opened.adapter, opened.dtype) == (None, torch.bfloat16)


def test_base_that_moved_may_be_given(adapter, tmp_path, capsys):
    (tmp_path / "base").rename(tmp_path / "moved")
    assert main(["merge", str(adapter), str(tmp_path / "dst")]) == 1
    assert "needs its base" in capsys.readouterr().err
    assert main(["merge", str(adapter), str(tmp_path / "dst"), "--base", str(tmp_path / "moved")]) == 0


def test_nothing_is_overwritten(adapter, tmp_path, capsys):
    assert main(["merge", str(adapter), str(tmp_path / "base")]) == 1
    assert "already there" in capsys.readouterr().err


def test_what_needs_a_whole_model_names_the_command(adapter, tmp_path, capsys):
    assert main(["info", str(adapter), "--memory"]) == 1
    assert "vla merge" in capsys.readouterr().err


def test_a_whole_policy_needs_no_merging(adapter, tmp_path, capsys):
    with unchanged(tmp_path):
        assert main(["merge", str(tmp_path / "base"), str(tmp_path / "dst")]) == 1
    said = capsys.readouterr().err
    assert "base is a whole policy and no adapter: there is nothing to merge" in said
    assert "missing" not in said
    (adapter / "adapter_base.json").unlink()
    with unchanged(tmp_path):
        assert main(["merge", str(adapter), str(tmp_path / "dst")]) == 1
    assert "(peft: merge_and_unload)" in capsys.readouterr().err
