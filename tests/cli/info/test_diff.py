"""`vla info A --diff B`: the numbers are those of plain torch, whatever the formats of the two."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.cli.info.test_checkpoint import make_policy, save_as
from vla.cli import main
from vla.cli.info.diff import _aligned, compare


def difference(first, second, capsys):
    assert main(["info", str(first), "--diff", str(second), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def policy():
    return make_policy("pi0")


@pytest.fixture
def first(policy, tmp_path):
    policy.save_pretrained(tmp_path / "first")
    return tmp_path / "first"


def test_a_checkpoint_is_equal_to_itself(policy, first, capsys):
    values = difference(first, first, capsys)
    assert values["same_weights"] is True
    assert values["equal"] == len(list(policy.parameters()))
    assert values["config"] == {}
    assert main(["info", str(first), "--diff", str(first)]) == 0
    assert "The weights are the same" in capsys.readouterr().out


def test_changes_are_measured(policy, first, tmp_path, capsys):
    before = policy.model.state_proj.weight.detach().clone()
    with torch.no_grad():
        policy.model.state_proj.weight[2, 3] += 0.5
        policy.model.action_in_proj.bias.zero_().add_(0.25)
    policy.config.num_inference_steps = 5
    policy.save_pretrained(tmp_path / "second")
    values = difference(first, tmp_path / "second", capsys)
    assert [one["name"] for one in values["tensors"]] == [
        "model.action_in_proj.bias",
        "model.state_proj.weight",
    ]
    bias, weight = values["tensors"]
    assert bias == {"name": bias["name"], "max_abs": 0.25, "relative_rms": None}  # it was zero before
    assert weight["max_abs"] == pytest.approx(0.5, rel=1e-6)
    assert weight["relative_rms"] == pytest.approx(0.5 / before.norm().item(), rel=1e-5)
    assert values["equal"] == len(list(policy.parameters())) - 2
    assert values["config"] == {"num_inference_steps": [10, 5]}
    assert main(["info", str(first), "--diff", str(tmp_path / "second")]) == 0
    printed = capsys.readouterr().out
    assert "model.state_proj.weight" in printed
    assert "config num_inference_steps: 10 -> 5" in printed


def test_formats_do_not_matter(policy, first, tmp_path, capsys):
    theirs = save_as(policy, tmp_path / "theirs", "openpi", {"action_dim": 8, "action_horizon": 6})
    assert difference(first, theirs, capsys)["same_weights"] is True
    halved = save_as(policy, tmp_path / "halved", "lerobot, fine-tuned", {"type": "pi0"}, torch.bfloat16)
    values = difference(first, halved, capsys)
    assert values["dtypes"] == {"float32 -> bfloat16": len(list(policy.parameters()))}
    assert 0 < values["tensors"][0]["relative_rms"] < 2**-8
    assert values["labels"] == ["pi0, format vla", "pi0, format lerobot"]


def test_policies_with_different_parts(first, tmp_path, capsys):
    make_policy("pi05").save_pretrained(tmp_path / "second")
    values = difference(first, tmp_path / "second", capsys)
    assert values["same_weights"] is False
    assert "model.state_proj.weight" in values["only_in_first"]
    assert "model.time_mlp_in.weight" in values["only_in_second"]


def test_shapes_that_differ_are_named(tmp_path, capsys):
    for name, width in (("first", 3), ("second", 4)):
        (tmp_path / name).mkdir()
        save_file({"a": torch.ones(2, width), "b": torch.ones(2)}, tmp_path / name / "model.safetensors")
    values = difference(tmp_path / "first", tmp_path / "second", capsys)
    assert values["shapes"] == {"a": [[2, 3], [2, 4]]}
    assert values["equal"] == 1
    assert values["labels"][0].startswith("no known policy")
    assert main(["info", str(tmp_path / "first"), "--diff", str(tmp_path / "second")]) == 0
    assert "shape of a: [2, 3] -> [2, 4]" in capsys.readouterr().out


def test_scalars_and_empty_tensors(tmp_path):
    for name, value in (("first", 1.0), ("second", 1.5)):
        (tmp_path / name).mkdir()
        tensors = {"scalar": torch.tensor(value), "empty": torch.ones(0, 3)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    found = compare(tmp_path / "first", tmp_path / "second")
    assert found.equal == 1
    assert [(one.name, one.max_abs, one.relative_rms) for one in found.tensors] == [("scalar", 0.5, 0.5)]


def test_many_differences_are_cut_in_print_alone(policy, first, tmp_path, capsys):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    policy.save_pretrained(tmp_path / "second")
    assert main(["info", str(first), "--diff", str(tmp_path / "second")]) == 0
    count = len(list(policy.parameters()))
    assert f"the 20 of {count} that differ most" in capsys.readouterr().out
    tensors = difference(first, tmp_path / "second", capsys)["tensors"]
    assert len(tensors) == count
    finite = [one["relative_rms"] for one in tensors if one["relative_rms"] is not None]
    assert finite == sorted(finite, reverse=True)


def test_damaged_or_absent_other(first, tmp_path, capsys):
    assert main(["info", str(first), "--diff", str(tmp_path / "none" / "at" / "all")]) == 1
    assert "none/at/all is not a folder here" in capsys.readouterr().err
    (tmp_path / "cut").mkdir()
    weights = (first / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(weights[:-4])
    assert main(["info", str(first), "--diff", str(tmp_path / "cut")]) == 1
    error = capsys.readouterr().err
    assert "model.safetensors" in error
    assert error.count("\n") == 1


def test_infinite_differences_are_valid_json(tmp_path, capsys):
    for name, value in (("first", 0.0), ("second", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"a": torch.full((3,), value)}, tmp_path / name / "model.safetensors")
    assert difference(tmp_path / "first", tmp_path / "second", capsys)["tensors"][0]["relative_rms"] is None
    assert compare(tmp_path / "first", tmp_path / "second").tensors[0].relative_rms == math.inf


@given(st.data(), st.integers(0, 30))
def test_blocks_are_cut_to_pairs_of_equal_length(data, length):
    """Each sequence hands out views of one buffer that it overwrites, as readers do."""

    def blocks(values):
        buffer, start = torch.empty(length), 0
        while start < length:
            size = data.draw(st.integers(1, length - start))
            buffer[:size] = values[start : start + size]
            yield buffer[:size]
            start += size

    one, other = torch.arange(length) * 1.0, torch.arange(length) * -2.0
    pairs = [(x.clone(), y.clone()) for x, y in _aligned(blocks(one), blocks(other))]
    assert all(len(x) == len(y) > 0 for x, y in pairs)
    joined = [torch.cat(list(side)) if pairs else torch.empty(0) for side in zip(*pairs, strict=True)] or [
        one,
        other,
    ]
    assert torch.equal(joined[0], one)
    assert torch.equal(joined[1], other)
