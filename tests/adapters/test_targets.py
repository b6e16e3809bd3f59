"""Which layers an adapter changes, written as `peft` takes it."""

import peft
import pytest

import vla
from tests.policies.conftest import make_robot_policy
from vla.adapters.lora import AdapterConfig, add_adapter
from vla.errors import ConfigError


@pytest.fixture
def base(tmp_path):
    make_robot_policy().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def policy(base):
    return vla.AutoPolicy.from_pretrained(base)


def adapted_maps(policy):
    return {
        name.rpartition(".lora_A")[0].removeprefix("base_model.model.")
        for name, _ in policy.named_parameters()
        if ".lora_A." in name
    }


@pytest.mark.parametrize(
    "targets", ["q_proj", "q_proj,v_proj", ["q_proj", "v_proj"], ["self_attn.q_proj", "fc1"], {"up_proj"}]
)
def test_targets_are_those_of_peft(base, policy, targets):
    add_adapter(policy, AdapterConfig(rank=2, targets=targets))
    listed = targets.split(",") if isinstance(targets, str) else list(targets)
    theirs = vla.AutoPolicy.from_pretrained(base)
    peft.get_peft_model(theirs, peft.LoraConfig(r=2, target_modules=listed))
    assert adapted_maps(policy) == adapted_maps(theirs) != set()


def test_all_linear_layers(base, policy):
    add_adapter(policy, AdapterConfig(rank=2, targets="all-linear"))
    other = vla.AutoPolicy.from_pretrained(base)
    add_adapter(other, AdapterConfig(rank=2, preset="all-linear"))
    assert adapted_maps(policy) == adapted_maps(other) != set()
    with pytest.raises(ConfigError, match=r"takes an AdapterConfig.*LoraConfig is for peft.get_peft_model"):
        add_adapter(other, peft.LoraConfig(target_modules=["q_proj"]), name="theirs")
