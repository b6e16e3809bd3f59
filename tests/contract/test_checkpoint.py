"""Every policy's folder: whole, strict, by its `model_type`, whoever wrote the policy."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import vla
from tests.contract.test_network import sample
from tests.hub_server import TOKEN, serving, speak_to
from vla.checkpoints.convert import convert
from vla.cli import main
from vla.errors import ConfigError, WeightsError
from vla.policies.registry import policy_entry, policy_names


@pytest.fixture
def saved(policy, tmp_path):
    policy.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_what_was_saved_is_what_loads(name, policy, saved):
    loaded = vla.AutoPolicy.from_pretrained(saved)
    assert type(loaded) is policy_entry(name).policy
    assert loaded.config.to_dict() | {"dtype": None} == policy.config.to_dict() | {"dtype": None}
    ours, theirs = policy.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    batch = policy.example_batch(2)
    assert torch.equal(sample(loaded, batch), sample(policy, batch))
    assert json.loads((saved / "config.json").read_text())["model_type"] == f"vla_{name}"


def test_its_own_class_loads_it_and_no_other_does(name, policy, saved):
    assert type(type(policy).from_pretrained(saved)) is type(policy)
    for other in policy_names():
        if other != name:
            with pytest.raises(WeightsError, match=f"holds a {type(policy).__name__}, not a"):
                policy_entry(other).policy.from_pretrained(saved)


def test_dtype_is_chosen_at_loading(saved):
    loaded = vla.AutoPolicy.from_pretrained(saved, dtype="bfloat16")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_an_unknown_field_is_refused(saved):
    with pytest.raises(ConfigError, match=r"action_horizn.*Did you mean 'action_horizon'"):
        vla.AutoPolicy.from_pretrained(saved, config={"action_horizn": 4})


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_nothing_is_loaded_partially(saved, damage):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    key = sorted(tensors)[0]
    if damage == "missing":
        del tensors[key]
    elif damage == "unexpected":
        tensors[f"{key}_twin"] = torch.zeros(2)
    else:
        tensors[key] = torch.zeros(*tensors[key].shape, 2)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError) as error:
        vla.AutoPolicy.from_pretrained(saved)
    assert key in str(error.value)


def test_saved_again_it_replaces_itself_alone(policy, saved):
    (saved / "mine.txt").write_text("mine")
    names = {path.name for path in saved.iterdir()}
    with torch.no_grad():
        next(policy.parameters()).add_(1)
    policy.save_pretrained(saved)
    assert {path.name for path in saved.iterdir()} == names
    assert torch.equal(
        next(vla.AutoPolicy.from_pretrained(saved).parameters()), next(policy.parameters()).detach()
    )


def test_conversion_to_our_own_format(name, saved, tmp_path):
    report = convert(saved, tmp_path / "half", "vla", dtype="bfloat16")
    assert report.policy == name
    loaded = vla.AutoPolicy.from_pretrained(tmp_path / "half")
    whole = vla.AutoPolicy.from_pretrained(saved)
    for (key, half), full in zip(loaded.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(half, full.to(torch.bfloat16)), key


def test_info_describes_it(name, policy, saved, capsys):
    capsys.readouterr()
    main(["info", str(saved), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["policy"] == name
    assert found["problem"] is None
    assert found["parameters"] == sum(parameter.numel() for parameter in policy.parameters())
    assert sum(found["parts"].values()) == found["parameters"]


def test_push_and_load_from_the_hub(name, policy, monkeypatch, tmp_path):
    with serving() as hub:
        speak_to(hub.url, monkeypatch, tmp_path / "cache")
        policy.push_to_hub("me/policy", token=TOKEN)
        card = hub.repos["me/policy"].branches["main"]["README.md"].decode()
        loaded = vla.AutoPolicy.from_pretrained("me/policy")
    assert name in card
    assert torch.equal(sample(loaded, policy.example_batch(2)), sample(policy, policy.example_batch(2)))


def test_a_policy_that_nobody_knows_is_named(saved):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_type": "vla_nobodys"}))
    with pytest.raises(WeightsError, match=r"policy 'nobodys', which is not known here.*register"):
        vla.AutoPolicy.from_pretrained(saved)
