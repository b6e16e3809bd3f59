import json

import pytest
import torch

import vla
from vla.errors import ConfigError, StatisticsError, WeightsError
from vla.policies.auto import AutoPolicy, load
from vla.policies.pi0.policy import Pi0Policy
from vla.policies.registry import make_config, make_policy, policy_entry, policy_names


def test_policies_are_found_by_folder():
    assert "pi0" in policy_names()
    entry = policy_entry("pi0")
    assert entry.policy is Pi0Policy
    assert entry.config is Pi0Policy.config_class


def test_unknown_policy():
    with pytest.raises(ConfigError, match=r"There is no policy 'pi00'.*Did you mean 'pi0'"):
        policy_entry("pi00")


def test_make_policy_takes_preset_and_overrides():
    policy = make_policy("pi0", {"action_horizon": 3}, preset="tiny")
    assert policy.config.action_horizon == 3
    assert policy.config.depth == 2


@pytest.mark.parametrize(
    ("overrides", "preset", "message"),
    [
        ({"action_horizn": 3}, "tiny", "policy.config.action_horizn.*Did you mean 'action_horizon'"),
        ({"image_size": 56}, "tiny", r"image_size is not a field .*Did you mean 'vision\.image_size'"),
        ({}, "huge", "no preset 'huge', only tiny"),
        ({"action_horizon": "long"}, "tiny", "action_horizon"),
        ({"action_horizon": 0}, "tiny", "action_horizon must be at least 1, got 0"),
        ({"cameras": ["a", "a"]}, "tiny", "distinct names"),
        ({"wrist_cameras": ["a"]}, "tiny", "wrist_cameras"),
        ({"num_heads": 3, "num_kv_heads": 2}, "tiny", "multiple of num_kv_heads"),
        ({"head_dim": 7}, "tiny", "even"),
        ({"expert": {"width": 15, "mlp_dim": 4}}, "tiny", "even"),
        ({"solver": "eular"}, "tiny", "solver must be one of"),
        ({"tau_scale": 1.5}, "tiny", "tau_scale"),
        ({"action_objective": "regression", "draws_per_observation": 2}, "tiny", "draws_per_observation"),
    ],
)
def test_configs_that_make_no_sense(overrides, preset, message):
    with pytest.raises(ConfigError, match=message):
        make_config("pi0", overrides, preset)


def test_full_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        policy = Pi0Policy(make_config("pi0"))
    assert sum(p.numel() for p in policy.parameters()) == 3_238_048_528
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in policy.model.named_children()}
    assert parts["vision_tower"] == 412_442_352
    assert parts["multi_modal_projector"] == 2_361_344
    assert parts["language_model"] == 1_981_884_416 + 526_647_296
    assert parts["expert"] == 311_464_960


def test_auto_policy_opens_what_was_saved(robot_ready, tmp_path):
    robot_ready.save_pretrained(tmp_path / "policy")
    policy = AutoPolicy.from_pretrained(tmp_path / "policy", dtype=torch.float64, device="cpu")
    assert isinstance(policy, Pi0Policy)
    assert policy.dtype == torch.float64
    assert not policy.training
    assert vla.AutoPolicy is AutoPolicy


def test_load_refuses_to_act_without_statistics(robot_ready, tmp_path):
    robot_ready.pipeline = None
    robot_ready.save_pretrained(tmp_path / "policy")
    with pytest.raises(StatisticsError, match=r"cannot act.*vla train"):
        load(tmp_path / "policy")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "is empty"),
        ("{", "config.json is not JSON"),
        (json.dumps({"model_type": "bert"}), "holds no weights"),
    ],
)
def test_folders_that_are_no_policy(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(WeightsError, match=message):
        AutoPolicy.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "not a folder"),
        ("nobody/nothing", "not a folder here, and the hub could not be reached"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(WeightsError, match=message):
        AutoPolicy.from_pretrained(name)


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="give the folder"):
        AutoPolicy.from_pretrained(tmp_path / "model.safetensors")
