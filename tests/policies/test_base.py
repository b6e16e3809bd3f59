"""A policy's folder holds all of it, is written whole or not at all, and is loaded whole or not at all."""

import errno
import json
import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.parity.transformers_pi0 import make_batch
from vla.adapters.lora import add_adapter
from vla.atomic import SaveError
from vla.errors import ConfigError, WeightsError
from vla.policies.pi0.policy import Pi0Policy
from vla.transforms.prompt import TokenizePrompt


def test_round_trip_is_exact(robot_ready, tmp_path):
    robot_ready.save_pretrained(tmp_path / "policy")
    loaded = Pi0Policy.from_pretrained(tmp_path / "policy")
    for name, tensor in robot_ready.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ours, theirs = robot_ready.config.to_dict(), loaded.config.to_dict()
    assert {k: v for k, v in ours.items() if k[0] != "_"} == {k: v for k, v in theirs.items() if k[0] != "_"}
    sample = {"images": {}, "state": torch.ones(3), "task": "pick up the cup"}
    sample["images"]["top"] = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    batch = make_batch(robot_ready.config)
    with torch.no_grad():
        assert torch.equal(robot_ready(**batch).velocity, loaded(**batch).velocity)
    ours, theirs = robot_ready.pipeline(sample), loaded.pipeline(sample)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    files = {path.name for path in (tmp_path / "policy").iterdir()}
    assert {"config.json", "model.safetensors", "pipeline.json", "statistics.json"} <= files


def test_shards_load_too(robot_ready, tmp_path):
    robot_ready.save_pretrained(tmp_path / "policy", max_shard_size="50KB")
    assert (tmp_path / "policy" / "model.safetensors.index.json").exists()
    loaded = Pi0Policy.from_pretrained(tmp_path / "policy")
    assert torch.equal(loaded.model.state_proj.weight, robot_ready.model.state_proj.weight)


def test_weights_convert_on_the_way(robot_ready, tmp_path):
    robot_ready.save_pretrained(tmp_path / "policy")
    loaded = Pi0Policy.from_pretrained(tmp_path / "policy", dtype=torch.bfloat16)
    assert loaded.model.state_proj.weight.dtype == torch.bfloat16


def test_saved_again_it_replaces_itself_and_nothing_else(robot_ready, tmp_path):
    folder = tmp_path / "policy"
    robot_ready.save_pretrained(folder, max_shard_size="50KB")
    (folder / "mine.txt").write_text("precious")
    with torch.no_grad():
        robot_ready.model.state_proj.weight.add_(1)
    robot_ready.save_pretrained(folder)
    assert not list(folder.glob("model-*")) + list(folder.glob("*.index.json")) + list(folder.glob(".*"))
    assert (folder / "mine.txt").read_text() == "precious"
    loaded = Pi0Policy.from_pretrained(folder)
    assert torch.equal(loaded.model.state_proj.weight, robot_ready.model.state_proj.weight)


def test_what_was_interrupted_when_complete_is_opened_as_the_new_one(robot_ready, tmp_path, monkeypatch):
    folder = tmp_path / "policy"
    robot_ready.save_pretrained(folder)
    with torch.no_grad():
        robot_ready.model.state_proj.weight.add_(1)
    with monkeypatch.context() as patch:
        patch.setattr("vla.checkpoints.replace._move", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            robot_ready.save_pretrained(folder)
    assert (folder / ".vla_saved").is_dir()
    loaded = Pi0Policy.from_pretrained(folder)
    assert torch.equal(loaded.model.state_proj.weight, robot_ready.model.state_proj.weight)
    assert not (folder / ".vla_saved").exists()


def test_an_adapter_does_not_erase_its_base(robot_ready, tmp_path):
    robot_ready.save_pretrained(tmp_path / "base")
    before = {path: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    adapted = Pi0Policy.from_pretrained(tmp_path / "base")
    add_adapter(adapted)
    with pytest.raises(SaveError, match="holds a whole policy, which an adapter does not replace"):
        adapted.save_pretrained(tmp_path / "base")
    assert {path: path.read_bytes() for path in (tmp_path / "base").iterdir()} == before


def test_an_empty_folder_may_be_filled(robot_ready, tmp_path):
    robot_ready.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").exists()


def test_a_full_disk_leaves_nothing_behind(robot_ready, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(robot_ready.pipeline), "save", full)
    with pytest.raises(SaveError, match="the disk is full"):
        robot_ready.save_pretrained(tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_under_the_tensors_leaves_nothing_behind(robot_ready, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail)
    with pytest.raises(SaveError, match="No space left on device"):
        robot_ready.save_pretrained(tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(robot_ready, tmp_path):
    robot_ready.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_tensor_is_named(folder):
    edit(folder, lambda tensors: tensors.pop("model.state_proj.bias"))
    with pytest.raises(WeightsError, match=r"1 missing: model\.state_proj\.bias\."):
        Pi0Policy.from_pretrained(folder)


def test_a_renamed_tensor_is_named_with_its_nearest_neighbour(folder):
    edit(
        folder, lambda tensors: tensors.update({"model.state_prj.bias": tensors.pop("model.state_proj.bias")})
    )
    with pytest.raises(
        WeightsError,
        match=r"unexpected: model\.state_prj\.bias \(nearest missing name: model\.state_proj\.bias\)",
    ):
        Pi0Policy.from_pretrained(folder)


def test_a_wrong_shape_is_named(folder):
    edit(folder, lambda tensors: tensors.update({"model.state_proj.bias": torch.zeros(3)}))
    with pytest.raises(
        WeightsError, match=r"wrong shape: model\.state_proj\.bias: stored \[3\], expected \[16\]"
    ):
        Pi0Policy.from_pretrained(folder)


def test_a_truncated_file_is_an_error(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"is cut off.*download it again"):
        Pi0Policy.from_pretrained(folder)


def test_a_shard_that_the_index_does_not_list_is_an_error(robot_ready, tmp_path):
    robot_ready.save_pretrained(tmp_path / "policy", max_shard_size="50KB")
    index = tmp_path / "policy" / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    lost = sorted(set(values["weight_map"].values()))[1]
    values["weight_map"] = {name: file for name, file in values["weight_map"].items() if file != lost}
    index.write_text(json.dumps(values))
    with pytest.raises(
        WeightsError, match=rf"holds {lost}, which model\.safetensors\.index\.json does not list"
    ):
        Pi0Policy.from_pretrained(tmp_path / "policy")


def test_other_cameras_bring_their_own_wrists(robot_ready, tmp_path):
    robot_ready.save_pretrained(tmp_path / "policy")
    changed = Pi0Policy.from_pretrained(
        tmp_path / "policy", config={"cameras": ["a", "b_wrist"], "action_horizon": 3}
    )
    assert (changed.config.wrist_cameras, changed.config.action_horizon) == (("b_wrist",), 3)
    with pytest.raises(ConfigError, match="depth"):
        Pi0Policy.from_pretrained(tmp_path / "policy", config={"depth": 7})


def test_a_folder_without_weights_is_an_error(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds no weights"):
        Pi0Policy.from_pretrained(folder)


def test_config_that_is_not_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json is not JSON"):
        Pi0Policy.from_pretrained(folder)


def test_weights_without_a_pipeline_load_for_fine_tuning(robot_ready, tmp_path):
    robot_ready.pipeline = None
    robot_ready.save_pretrained(tmp_path / "policy")
    assert Pi0Policy.from_pretrained(tmp_path / "policy").pipeline is None
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["model_type"] == "vla_pi0"


def test_weights_without_a_pipeline_keep_their_tokenizer_for_fine_tuning(robot_ready, tmp_path):
    tokenizer = robot_ready.pipeline.find(TokenizePrompt).tokenizer
    robot_ready.pipeline = None
    robot_ready.save_pretrained(tmp_path / "policy")
    assert Pi0Policy.from_pretrained(tmp_path / "policy").tokenizer is None
    tokenizer.save_pretrained(tmp_path / "policy")
    found = Pi0Policy.from_pretrained(tmp_path / "policy").tokenizer
    assert found.encode("pick up") == tokenizer.encode("pick up")
