"""`AutoConfig` and `AutoModel` know the policies after `import vla`, in either order, and cost it nothing."""

import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoModel

from tests.folders import unchanged
from vla.adapters.lora import AdapterConfig, add_adapter
from vla.errors import ConfigError, WeightsError
from vla.policies.registry import make_policy, policy_entry

CHECK = """
import sys
{first}
{second}
config = AutoConfig.from_pretrained(sys.argv[1])
print(type(config).__name__, AutoModel.from_pretrained(sys.argv[1]).pipeline is not None)
"""


OURS, THEIRS = "import vla", "from transformers import AutoConfig, AutoModel"


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(OURS, THEIRS), (THEIRS, OURS)])
def test_either_may_be_imported_first(robot_ready, tmp_path, first, second):
    robot_ready.save_pretrained(tmp_path / "policy")
    command = [sys.executable, "-c", CHECK.format(first=first, second=second), str(tmp_path / "policy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "Pi0Config True\n", done.stderr


def test_import_vla_loads_nothing_and_disturbs_nobody():
    check = (
        "import sys, vla; assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules);"
        "from transformers import CONFIG_MAPPING as known; assert 'bert' in known and 'vla_bc' in known;"
        "assert 'vla_nothing' not in known and 'nothing' not in known;"
        "assert 'vla.policies.pi0' not in sys.modules;"
        "print(sum(type(finder).__module__.startswith('vla') for finder in sys.meta_path))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert done.stdout == "0\n", done.stderr


@pytest.mark.parametrize("name", ["pi0", "pi05", "bc"])
def test_a_config_makes_the_round_trip(name, tmp_path):
    policy = make_policy(name, preset="tiny")
    policy.config.save_pretrained(tmp_path / "config")
    config = AutoConfig.from_pretrained(tmp_path / "config")
    assert type(config) is policy_entry(name).config
    ours, theirs = policy.config.to_dict(), config.to_dict()
    assert {k: v for k, v in ours.items() if k[0] != "_"} == {k: v for k, v in theirs.items() if k[0] != "_"}
    assert AutoConfig.for_model(f"vla_{name}").model_type == f"vla_{name}"
    assert type(AutoModel.from_config(config)) is policy_entry(name).policy
    policy.save_pretrained(tmp_path / "policy")
    assert (
        type(AutoModel.from_pretrained(tmp_path / "policy", trust_remote_code=True))
        is policy_entry(name).policy
    )


def test_an_adapter_opens_with_its_base(robot_ready, tmp_path):
    robot_ready.save_pretrained(tmp_path / "base")
    adapted = AutoModel.from_pretrained(tmp_path / "base")
    add_adapter(adapted, AdapterConfig(rank=2))
    adapted.save_pretrained(tmp_path / "adapter")
    assert AutoModel.from_pretrained(tmp_path / "adapter").adapter == "default"
    (tmp_path / "adapter" / "adapter_base.json").unlink()  # as of another library
    with pytest.raises(WeightsError, match="holds a LoRA adapter"):
        AutoModel.from_pretrained(tmp_path / "adapter")


def test_auto_model_takes_fields_as_keywords_and_one_attention_alone(robot_ready, tmp_path):
    robot_ready.save_pretrained(tmp_path / "policy")
    assert AutoModel.from_pretrained(tmp_path / "policy", action_horizon=3).config.action_horizon == 3
    AutoModel.from_pretrained(tmp_path / "policy", attn_implementation="sdpa")
    with pytest.raises(ConfigError, match=r"^output_attentions=True needs another attention"):
        AutoModel.from_pretrained(tmp_path / "policy", output_attentions=True)
    for other in ("eager", "flash_attention_2", "bogus"):
        with (
            unchanged(tmp_path),
            pytest.raises(ConfigError, match=rf"attn_implementation='{other}'.*leave it out"),
        ):
            AutoModel.from_pretrained(tmp_path / "policy", attn_implementation=other)


def test_fields_of_another_type_are_said_in_our_words(robot_ready, tmp_path):
    robot_ready.save_pretrained(tmp_path / "policy")
    for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained, type(robot_ready).from_pretrained):
        with pytest.raises(ConfigError, match=r"Field 'action_horizon' expected int, got str \(value: '3'\)"):
            load(tmp_path / "policy", action_horizon="3")
    with pytest.raises(ConfigError, match=r"^Pi0Config: Field 'action_horizon' expected int, got str"):
        policy_entry("pi0").config(action_horizon="3")
