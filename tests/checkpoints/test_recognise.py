"""Policy, format and dimensions come from the tensors; what a config says next to them must agree."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints.random_configs import configs, policy_of, shapes_of, tensors_of
from tests.weights.memory import stored_in_memory
from tests.weights.published import GENERATIONS, PALIGEMMA, as_jax, as_paligemma, renamed
from vla.checkpoints.recognise import format_of, recognise, weights_module
from vla.errors import ConfigError, WeightsError
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi05.config import Pi05Config
from vla.weights.formats import VLA_CONFIG
from vla.weights.plan import plan_load

CONFIGS = {"pi0": Pi0Config.tiny(), "pi05": Pi05Config.tiny()}
PUBLISHED = {"num_kv_heads": 1, "vision": {**CONFIGS["pi0"].siglip, "num_attention_heads": 16}}
NAMED = {"lerobot": {"type": "pi0"}, "transformers": {"model_type": "pi0"}, "openpi": {}}

SIZES = (
    "vision", "vlm", "expert", "depth", "num_heads", "num_kv_heads", "head_dim", "vocab_size",
    "max_action_dim",
)  # fmt: skip


def read(tensors, config=None, overrides=None, metadata=None):
    stored = stored_in_memory(tensors, config, metadata)
    policy, format = recognise(stored)
    return weights_module(policy).read_config(stored, format, overrides)


def refuse(tensors, match, config=None, error=WeightsError, **rest):
    with pytest.raises(error, match=match) as raised:
        read(tensors, config, **rest)
    return str(raised.value)


def openpi(policy="pi0"):
    return renamed(tensors_of(CONFIGS[policy]), "openpi")


def same_sizes(got, want):
    for name in SIZES:
        assert getattr(got, name) == getattr(want, name), name
    if policy_of(want) == "pi0":
        assert got.max_state_dim == want.max_state_dim


# -- recognition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", CONFIGS)
@pytest.mark.parametrize("generation", sorted(GENERATIONS))
def test_torch_files_are_told_by_their_tensors(policy, generation):
    tensors = renamed(tensors_of(CONFIGS[policy]), generation)
    assert recognise(stored_in_memory(tensors))[0] == policy
    policy_, format = recognise(stored_in_memory(tensors, {"type": policy}))
    assert (policy_, format.name) == (policy, "lerobot")


@pytest.mark.parametrize("name", NAMED)
def test_config_tells_torch_formats_apart(name):
    assert recognise(stored_in_memory(openpi(), NAMED[name]))[1].name == name


def test_names_of_the_module_of_transformers_tell_without_a_config():
    tensors = renamed(tensors_of(CONFIGS["pi0"]), "transformers, module")
    assert recognise(stored_in_memory(tensors))[1].name == "transformers"


def test_processor_file_tells_lerobot(tmp_path):
    (tmp_path / "policy_preprocessor.json").write_text("{}")
    assert recognise(stored_in_memory(openpi(), folder=tmp_path))[1].name == "lerobot"


@pytest.mark.parametrize("policy", CONFIGS)
def test_our_files_and_jax_trees_are_told(policy):
    config = CONFIGS[policy]
    ours = stored_in_memory(tensors_of(config), config.to_dict())
    assert (recognise(ours)[0], recognise(ours)[1].name) == (policy, "vla")
    tree = stored_in_memory(as_jax(tensors_of(config), config))
    assert (recognise(tree)[0], recognise(tree)[1].name) == (policy, "openpi-jax")


@pytest.mark.parametrize("policy", CONFIGS)
@pytest.mark.parametrize("format_name", ["openpi", "openpi-jax", "vla"])
def test_one_renamed_tensor_does_not_hide_the_policy(policy, format_name):
    config = CONFIGS[policy]
    tensors = {
        "openpi": lambda: openpi(policy),
        "openpi-jax": lambda: as_jax(tensors_of(config), config),
        "vla": lambda: tensors_of(config),
    }[format_name]()
    for name in list(tensors)[::7]:
        changed = {("x" + key if key == name else key): tensor for key, tensor in tensors.items()}
        stored = stored_in_memory(changed, config.to_dict() if format_name == "vla" else {})
        found, format = recognise(stored)
        assert (found, format.name) == (policy, format_name)
        settings_ = weights_module(found).read_config(stored, format)
        with pytest.raises(WeightsError, match=rf"missing: .*{re.escape(name)}.* unexpected: x"):
            plan_load(format, stored, shapes_of(settings_))


@pytest.mark.parametrize("generation", PALIGEMMA)
def test_paligemma_is_no_policy(generation):
    tensors = as_paligemma(tensors_of(CONFIGS["pi0"]), generation)
    refuse(tensors, "PaliGemma without an action expert.*from_paligemma", {"model_type": "paligemma"})
    refuse({**tensors, "lm_head.weight": torch.ones(2, 2)}, "PaliGemma without an action expert")


def test_strangers_are_refused():
    message = refuse(
        {f"bert.{i}.w": torch.ones(1) for i in range(9)}, "not a checkpoint of a policy known here"
    )
    assert "9 of 9" in message
    assert "bert.0.w" in message


def test_our_names_without_a_config_are_refused():
    refuse(tensors_of(CONFIGS["pi0"]), "format 'vla'.*config.json is missing")


@pytest.mark.parametrize(("one", "other"), [("pi0", "pi05"), ("pi05", "pi0")])
def test_mixture_is_refused(one, other):
    tensors = openpi(one)
    theirs = [name for name in openpi(other) if name not in tensors][:2]
    message = refuse(
        {**tensors, **{name: openpi(other)[name] for name in theirs}}, f"most of its tensors are {one}'s"
    )
    assert all(name in message for name in theirs)


@pytest.mark.parametrize(("one", "other"), [("pi0", "pi05"), ("pi05", "pi0")])
@pytest.mark.parametrize("key", ["type", "model_type"])
def test_config_of_the_other_policy_is_refused(one, other, key):
    refuse(openpi(one), f"config.json says '{other}', but the tensors are {one}'s", {key: other})


def test_unknown_format_is_refused_with_those_there_are():
    with pytest.raises(
        ConfigError, match=r"no format 'lerobt' for pi05, only vla, lerobot, openpi. Did you mean 'lerobot'"
    ):
        format_of("pi05", "lerobt")
    with pytest.raises(ConfigError, match="no format 'transformers' for pi05"):
        format_of("pi05", "transformers")


# -- dimensions -------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(config=configs(published_heads=True), generation=st.sampled_from(sorted(GENERATIONS)))
def test_sizes_are_read_off_torch_tensors(config, generation):
    got = read(renamed(tensors_of(config), generation))
    same_sizes(got, config)
    assert shapes_of(got) == shapes_of(config)


@settings(max_examples=25, deadline=None)
@given(config=configs())
def test_sizes_and_heads_are_read_off_jax_arrays(config):
    same_sizes(read(as_jax(tensors_of(config), config)), config)


@settings(max_examples=15, deadline=None)
@given(config=configs())
def test_heads_may_be_given(config):
    given_heads = {
        "num_kv_heads": config.num_kv_heads,
        "vision": {"num_attention_heads": config.siglip["num_attention_heads"]},
    }
    same_sizes(read(renamed(tensors_of(config), "openpi"), overrides=given_heads), config)


@settings(max_examples=15, deadline=None)
@given(config=configs("pi0"))
def test_written_configs_are_read_back(config):
    module = weights_module("pi0")
    for name in ("transformers", "lerobot"):
        written = json.loads(json.dumps(module.write_config(config, format_of("pi0", name))))
        got = read(renamed(tensors_of(config), "openpi"), written)
        same_sizes(got, config)
        assert got.action_horizon == config.action_horizon
        assert got.num_inference_steps == config.num_inference_steps
        assert got.numerics == {"transformers": "transformers", "lerobot": "float64"}[name]
        if name == "lerobot":
            assert got.max_prompt_length == config.max_prompt_length
    written = module.write_config(config, format_of("pi0", "vla"))
    assert read(tensors_of(config), json.loads(json.dumps(written))).to_dict() == {
        **config.to_dict(), "dtype": "float32",
    }  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(config=configs())
def test_config_that_the_file_carries_loses_nothing(config):
    config.text_loss_weight, config.cameras, config.numerics = 0.25, ("top",), "openpi"
    config.wrist_cameras = ()
    got = read(
        renamed(tensors_of(config), "openpi"), metadata={VLA_CONFIG: config.to_json_string(use_diff=False)}
    )
    assert {**got.to_dict(), "dtype": None} == {**config.to_dict(), "dtype": None}


def test_carried_config_gives_way_to_the_config_beside_it():
    config = Pi0Config.tiny(action_horizon=6)
    metadata = {VLA_CONFIG: config.to_json_string(use_diff=False)}
    got = read(openpi(), {"type": "pi0", "chunk_size": 9}, metadata=metadata)
    assert got.action_horizon == 9
    assert got.numerics == "openpi"


def test_carried_config_of_other_sizes_is_not_used(caplog):
    caplog.set_level("INFO")
    carried = Pi0Config.tiny(vocab_size=500, action_horizon=7, **PUBLISHED)
    tensors = renamed(tensors_of(Pi0Config.tiny(**PUBLISHED)), "openpi")
    assert read(tensors, metadata={VLA_CONFIG: carried.to_json_string(use_diff=False)}).action_horizon == 50
    assert "another vocab_size" in caplog.text


@pytest.mark.parametrize("text", ["{", "[]"])
def test_carried_config_that_is_none_is_refused(text):
    refuse(openpi(), "vla_config in the metadata", metadata={VLA_CONFIG: text})


def test_horizon_is_50_unless_said():
    tensors = renamed(tensors_of(Pi0Config.tiny(**PUBLISHED)), "openpi")
    assert read(tensors).action_horizon == 50
    assert read(tensors, overrides={"action_horizon": 10}).action_horizon == 10
    assert read(tensors, {"action_horizon": 15}).action_horizon == 15


@pytest.mark.parametrize(("rows", "vocab"), [(257_216, 257_152), (257_152, 257_152), (600, 600)])
def test_rows_of_the_published_table(rows, vocab):
    tensors = renamed(tensors_of(Pi0Config.tiny(**PUBLISHED)), "openpi")
    name = next(name for name in tensors if name.endswith("lm_head.weight"))
    tensors[name] = torch.empty(rows, 32, device="meta")
    assert read(tensors).vocab_size == vocab
    assert (
        read(tensors, {"type": "pi0", "vlm_config": {"text_config": {"vocab_size": 512}}}).vocab_size == 512
    )


# -- what is odd ------------------------------------------------------------------------------------------

Q = "paligemma_with_expert.gemma_expert.model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "name",
    [
        Q,
        "state_proj.weight",
        "action_in_proj.weight",
        "paligemma_with_expert.paligemma.lm_head.weight",
        "paligemma_with_expert.paligemma.model.vision_tower.vision_model.embeddings.position_embedding.weight",
        "paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        "paligemma_with_expert.paligemma.model.language_model.layers.0.mlp.gate_proj.weight",
        "paligemma_with_expert.paligemma.model.multi_modal_projector.linear.weight",
    ],
)
def test_one_transposed_tensor_decides_nothing(name):
    config = Pi0Config.tiny(depth=1, vlm={"width": 20, "mlp_dim": 64}, **PUBLISHED)
    tensors = renamed(tensors_of(config), "openpi")
    tensors[name] = tensors[name].T.contiguous()
    stored = stored_in_memory(tensors)
    policy, format = recognise(stored)
    got = weights_module(policy).read_config(stored, format)
    same_sizes(got, config)
    with pytest.raises(
        WeightsError, match=rf"1 of the wrong shape: {re.escape(name)}: .*it looks transposed"
    ):
        plan_load(format, stored, shapes_of(got))


def test_heads_that_do_not_divide_are_refused():
    config = Pi0Config.tiny(num_heads=3, num_kv_heads=3, head_dim=4, vision=PUBLISHED["vision"])
    tensors = renamed(tensors_of(config), "openpi")
    assert read(tensors).num_heads == 1  # 12 channels of either: nothing odd can be seen
    refuse(
        tensors,
        "12 query and 12 key channels",
        {"type": "pi0", "dit_config": {}},
        overrides={"num_kv_heads": 5},
    )
    config = Pi0Config.tiny(num_heads=3, num_kv_heads=1, head_dim=4)
    refuse(renamed(tensors_of(config), "openpi"), "32 wide, which 5 heads do not divide", overrides={
        "vision": {"num_attention_heads": 5},
    })  # fmt: skip


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"type": "pi0", "max_state_dim": 32}, "says max_state_dim is 32, but the tensors have 8"),
        ({"action_dim": 32}, "says action_dim is 32, but the tensors have 8"),
        ({"model_type": "pi0", "dit_config": {"hidden_size": 1024}}, "says dit_config.hidden_size is 1024"),
        ({"type": "pi0", "image_resolution": [224, 224]}, "image_size is 224, but the tensors have 28"),
        ({"type": "pi0", "image_resolution": [28, 14]}, "square images"),
        ({"model_type": "pi0", "vlm_config": {"text_config": {"vocab_size": 513}}}, "vocab_size is 513"),
        (
            {"model_type": "pi0", "vlm_config": {"text_config": {"num_attention_heads": 7}}},
            "32 query and 8 key channels, which 7 heads",
        ),
    ],
)
def test_config_that_contradicts_the_tensors_is_refused(config, match):
    refuse(openpi(), match, config)


def test_our_config_that_contradicts_the_tensors_is_refused():
    config = {**CONFIGS["pi0"].to_dict(), "depth": 3}
    refuse(tensors_of(CONFIGS["pi0"]), "says depth is 3, but the tensors have 2", config)


def test_override_that_contradicts_the_tensors_is_refused():
    tensors = renamed(tensors_of(Pi0Config.tiny(**PUBLISHED)), "openpi")
    refuse(tensors, "You asked for depth=3", overrides={"depth": 3}, error=ConfigError)
    refuse(tensors, "no field 'horizon'.*'action_horizon'", overrides={"horizon": 3}, error=ConfigError)
    refuse(tensors, "is refused: .*solver", overrides={"solver": "magic"}, error=ConfigError)


def test_positions_of_no_square_are_refused():
    tensors = openpi()
    name = next(name for name in tensors if name.endswith("position_embedding.weight"))
    tensors[name] = torch.ones(5, 32)
    refuse(tensors, "5 positions")


# -- LeRobot's own ----------------------------------------------------------------------------------------


def test_cameras_come_from_lerobots_features():
    config = {
        "type": "pi0",
        "input_features": {
            "observation.images.top": {"type": "VISUAL", "shape": [3, 9, 9]},
            "observation.state": {"type": "STATE", "shape": [3]},
            "observation.images.left_wrist": {"type": "VISUAL", "shape": [3, 9, 9]},
        },
        "empty_cameras": 1,
        "num_steps": 7,
    }
    got = read(renamed(tensors_of(Pi0Config.tiny(**PUBLISHED)), "openpi"), config)
    assert got.cameras == ("top", "left_wrist", "empty_camera_0")
    assert got.wrist_cameras == ("left_wrist",)
    assert got.num_inference_steps == 7


def test_other_law_of_times_is_said(caplog):
    tensors = renamed(tensors_of(Pi0Config.tiny(**PUBLISHED)), "openpi")
    read(tensors, {"type": "pi0", "time_sampling_beta_beta": 2.0})
    assert "a distribution other than" in caplog.text
