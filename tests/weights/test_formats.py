"""Every spelling is read, and nothing but exactly the model's tensors is accepted."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.checkpoints.random_configs import configs, policy_of, shapes_of, tensors_of
from tests.folders import unchanged
from tests.weights.memory import make, stored_in_memory
from tests.weights.published import GENERATIONS, as_jax, renamed
from vla.checkpoints.recognise import format_of
from vla.errors import WeightsError
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi05.config import Pi05Config
from vla.weights.formats import open_stored
from vla.weights.paligemma import EXPERT_LM_HEAD, LM_HEAD
from vla.weights.plan import plan_load, plan_write
from vla.weights.stream import Fill

CONFIGS = {"pi0": Pi0Config.tiny(), "pi05": Pi05Config.tiny()}
VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
DOWN = "paligemma_with_expert.gemma_expert.model.layers.1.mlp.down_proj.weight"


def check(format_name, tensors, config, **stored):
    """Plan, make every tensor, and compare with where it came from; return the plan."""
    format = format_of(policy_of(config), format_name)
    opened = stored_in_memory(tensors, **stored)
    plan = plan_load(format, opened, shapes_of(config))
    for name, want in tensors_of(config).items():
        assert torch.equal(make(plan.pieces[name], opened.reader), want), name
        assert plan.pieces[name].info == (tuple(want.shape), want.dtype)
    return plan


def refuse(tensors, match, policy="pi0", format_name="openpi"):
    format = format_of(policy, format_name)
    with pytest.raises(WeightsError, match=match) as error:
        plan_load(format, stored_in_memory(tensors), shapes_of(CONFIGS[policy]))
    assert len(str(error.value)) < 2500
    return str(error.value)


def openpi(policy="pi0"):
    return renamed(tensors_of(CONFIGS[policy]), "openpi")


# -- reading ----------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(config=configs(), generation=st.sampled_from(sorted(GENERATIONS)))
def test_every_generation_of_torch_files_is_read(config, generation):
    check("lerobot", renamed(tensors_of(config), generation), config)


@settings(max_examples=8, deadline=None)
@given(config=configs("pi0"))
def test_names_of_the_module_of_transformers_are_read(config):
    check("transformers", renamed(tensors_of(config), "transformers, module"), config)


@settings(max_examples=15, deadline=None)
@given(
    config=configs(), lead=st.sampled_from(["params.", "params/", ""]), end=st.sampled_from(["", ".value"])
)
def test_jax_trees_are_read(config, lead, end):
    check("openpi-jax", as_jax(tensors_of(config), config, lead, end), config)


def test_jax_tree_with_slashes_is_read():
    config = CONFIGS["pi05"]
    tree = {name.replace(".", "/"): tensor for name, tensor in as_jax(tensors_of(config), config).items()}
    check("openpi-jax", tree, config)


@pytest.mark.parametrize("policy", CONFIGS)
def test_our_own_names_are_read(policy):
    check("vla", tensors_of(CONFIGS[policy]), CONFIGS[policy])


def test_names_of_the_time_maps_of_early_pi05_files_are_read():
    tensors = {re.sub("^time_mlp", "action_time_mlp", name): t for name, t in openpi("pi05").items()}
    assert "action_time_mlp_in.weight" in tensors
    check("lerobot", tensors, CONFIGS["pi05"])
    tensors = {re.sub("^action_time_mlp", "time_mlp", name): t for name, t in openpi().items()}
    check("lerobot", tensors, CONFIGS["pi0"])


def test_junk_is_left_out_and_said(caplog):
    caplog.set_level("INFO")
    junk = {
        EXPERT_LM_HEAD: torch.ones(3, 3),
        "normalize_inputs.buffer_observation_state.mean": torch.ones(3),
        f"{VISION}embeddings.position_ids": torch.arange(4),
    }
    plan = check("openpi", {**openpi(), **junk}, CONFIGS["pi0"])
    assert set(plan.dropped) == set(junk)
    assert all(name in caplog.text for name in junk)
    assert "statistics" in plan.dropped["normalize_inputs.buffer_observation_state.mean"]


# -- the token table --------------------------------------------------------------------------------------

EMBED = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"


def test_both_names_of_the_token_table_must_agree():
    tensors = openpi()
    plan = check("openpi", {**tensors, EMBED: tensors[LM_HEAD].clone()}, CONFIGS["pi0"])
    assert len(plan.dropped) == 1
    other = tensors[LM_HEAD].clone()
    other[300, 3] += 1
    refuse({**tensors, EMBED: other}, f"{re.escape(LM_HEAD)} and {re.escape(EMBED)} .* different values")


@pytest.mark.parametrize("one", [LM_HEAD, EMBED])
def test_either_name_of_the_token_table_will_do(one):
    tensors = openpi()
    tensors[one] = tensors.pop(LM_HEAD)
    check("openpi", tensors, CONFIGS["pi0"])


def test_without_a_token_table_both_names_are_named():
    tensors = openpi()
    del tensors[LM_HEAD]
    message = refuse(tensors, "1 missing")
    assert LM_HEAD in message
    assert EMBED in message


def test_rows_beyond_the_vocabulary_are_left_out_and_said():
    tensors = openpi()
    tensors[LM_HEAD] = torch.cat([tensors[LM_HEAD], torch.ones(64, 32)])
    plan = check("openpi", tensors, CONFIGS["pi0"])
    assert plan.pieces["model.language_model.embed_tokens.weight"].rows == 512
    assert "576 rows" in plan.notes[0]
    ours = tensors_of(CONFIGS["pi0"])
    ours["model.language_model.embed_tokens.weight"] = tensors[LM_HEAD]
    refuse(ours, r"stored \[576, 32\], expected \[512, 32\]", format_name="vla")


def test_too_few_rows_are_refused():
    tensors = openpi()
    tensors[LM_HEAD] = tensors[LM_HEAD][:500]
    refuse(tensors, r"stored \[500, 32\], expected \[512, 32\]")


# -- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", sorted(GENERATIONS))
def test_renamed_tensor_is_named_as_the_file_would_spell_it(generation):
    tensors = renamed(tensors_of(CONFIGS["pi0"]), generation)
    name = next(name for name in tensors if name.endswith("gemma_expert.model.layers.1.mlp.down_proj.weight"))
    wrong = name.replace("down_proj", "down_projection")
    tensors[wrong] = tensors.pop(name)
    message = refuse(tensors, "Nothing was loaded")
    assert f"1 missing: {name} (ours: model.expert.layers.1.mlp.down_proj.weight)." in message
    assert f"1 unexpected: {wrong} (nearest missing name: {name})." in message
    vision = next(name for name in tensors if name.endswith("layers.0.self_attn.q_proj.bias"))
    del tensors[vision]
    assert f"{vision} (ours: model.vision_tower.encoder.layers.0" in refuse(tensors, "2 missing")


def test_many_problems_are_counted():
    tensors = {f"x.{name}": tensor for name, tensor in openpi().items()}
    message = refuse(tensors, "missing")
    assert message.count(" and ") >= 2
    assert re.search(r"\d+ missing: .*, and \d+ more\. \d+ unexpected: .*, and \d+ more\.", message)


def test_unknown_extra_tensor_is_refused_with_the_nearest_known_name():
    extra = DOWN.replace("down", "dawn")
    refuse({**openpi(), extra: torch.ones(1)}, rf"1 unexpected: {extra} \(nearest known name: {DOWN}\)")


def test_transposed_tensor_is_refused():
    tensors = openpi()
    tensors[DOWN] = tensors[DOWN].T.contiguous()
    refuse(tensors, rf"{re.escape(DOWN)}: stored \[32, 16\], expected \[16, 32\]: it looks transposed")


def test_layer_too_many_is_unexpected():
    name = "paligemma_with_expert.gemma_expert.model.layers.2.mlp.down_proj.weight"
    refuse({**openpi(), name: torch.ones(16, 32)}, f"unexpected: {re.escape(name)}")


def test_same_tensor_under_two_spellings_is_refused():
    tensors = openpi()
    refuse({**tensors, f"model.{DOWN}": tensors[DOWN]}, f"stored twice: {DOWN} and model.{DOWN}")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int64])
def test_dtype_that_is_no_weights_is_refused(dtype):
    tensors = openpi()
    tensors[DOWN] = tensors[DOWN].to(dtype)
    refuse(
        tensors, rf"{re.escape(DOWN)} .* is of dtype {str(dtype)[6:]}; weights are float32, bfloat16, float16"
    )


@pytest.mark.parametrize(
    ("main", "odd"),
    [("float32", "bfloat16"), ("float32", "float64"), ("bfloat16", "float32"), ("bfloat16", "float16")],
)
def test_one_layer_of_another_dtype_is_refused(main, odd):
    tensors = {name: tensor.to(getattr(torch, main)) for name, tensor in openpi().items()}
    tensors[DOWN] = tensors[DOWN].to(getattr(torch, odd))
    message = refuse(tensors, "down_proj.weight")
    assert main in message
    assert odd in message


def test_one_kind_of_another_dtype_is_refused_unless_it_keeps_precision():
    tensors = openpi()
    refuse(
        {**tensors, "state_proj.bias": tensors["state_proj.bias"].bfloat16()},
        "state_proj.bias .* bfloat16.*float32",
    )
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    half["state_proj.bias"] = tensors["state_proj.bias"]
    plan_load(format_of("pi0", "openpi"), stored_in_memory(half), shapes_of(CONFIGS["pi0"]))
    half["state_proj.bias"] = tensors["state_proj.bias"].half()
    refuse(half, "state_proj.bias .* float16.*bfloat16")


def jax(policy="pi0"):
    return as_jax(tensors_of(CONFIGS[policy]), CONFIGS[policy])


def test_jax_array_that_is_missing_is_named_once():
    tree = jax()
    del tree["params.PaliGemma.llm.layers.attn.q_einsum_1.w"]
    message = refuse(tree, "1 missing: params.PaliGemma", format_name="openpi-jax")
    assert "q_einsum_1.w (ours: model.expert.layers.0.self_attn.q_proj.weight and 1 more)" in message


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: x[:1], r"linear_?.* stacks 1 layers, expected 2"),
        (lambda x: torch.cat([x, x]), "holds a layer too many"),
        (
            lambda x: x.transpose(1, 2).contiguous(),
            r"stored \[32, 16\] \(as ours\), expected \[16, 32\]: it looks transposed",
        ),
        (lambda x: x[..., None], "does not fit"),
        (lambda x: x.sum(), "scalar"),
    ],
)
def test_jax_array_of_a_wrong_shape_is_refused(change, match):
    tree = jax()
    name = "params.PaliGemma.llm.layers.mlp_1.linear"
    tree[name] = change(tree[name])
    message = refuse(tree, match, format_name="openpi-jax")
    assert name in message
    assert "missing" not in message


# -- writing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", CONFIGS)
def test_openpi_names_are_the_reverse_of_reading(policy):
    shapes = shapes_of(CONFIGS[policy])
    for format_name, lead in (("openpi", ""), ("lerobot", "model.")):
        plan = plan_write(format_of(policy, format_name), shapes, torch.bfloat16)
        zeros = plan.pop(f"{lead}{EXPERT_LM_HEAD}")
        assert zeros == Fill((512, 16), torch.bfloat16)
        tensors = {name: name for name in shapes}
        generation = {"openpi": "openpi", "lerobot": "lerobot, fine-tuned"}[format_name]
        assert plan == renamed(tensors, generation)


def test_format_that_is_only_read_is_not_written():
    with pytest.raises(WeightsError, match="'openpi-jax' can be read, but not written"):
        plan_write(format_of("pi0", "openpi-jax"), shapes_of(CONFIGS["pi0"]))


def test_tensor_without_a_name_in_the_format_is_not_written():
    with pytest.raises(WeightsError, match=r"no name for model\.extra"):
        plan_write(format_of("pi0", "openpi"), {"model.extra": (1,)})


@pytest.mark.parametrize(
    ("config", "count", "parameters"),
    [(Pi0Config(), 777, 3_501_372_176), (Pi05Config(), 812, 3_616_757_520)],
    ids=["pi0", "pi05"],
)
def test_full_size_has_the_published_count_of_tensors_and_parameters(config, count, parameters):
    shapes = shapes_of(config)
    plan = plan_write(format_of(policy_of(config), "lerobot"), shapes)
    written = [shapes[one] if isinstance(one, str) else one.shape for one in plan.values()]
    assert len(written) == count
    assert sum(torch.Size(shape).numel() for shape in written) == parameters


# -- folders ----------------------------------------------------------------------------------------------


def test_open_stored_reads_config_and_headers(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"x": 1}')
    with open_stored(tmp_path) as stored:
        assert stored.config == {"x": 1}
        assert list(stored.reader.infos) == ["a"]


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ([], "is empty"),
        (["adapter_config.json", "adapter_model.safetensors"], "LoRA adapter .* merge"),
        (["adapter_model.bin"], "LoRA adapter"),
        (
            ["adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors"],
            r"move the adapter's files \(adapter_config.json, adapter_model.safetensors\)",
        ),
        (["pytorch_model.bin", "config.json"], r"pickled weights \(pytorch_model.bin\)"),
        (["model.pt"], "pickled weights"),
        (["config.json"], "no weights"),
    ],
)
def test_folder_without_a_whole_model_is_refused(tmp_path, files, match):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(WeightsError, match=match), open_stored(tmp_path):
        pass


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.expert.layers.0.self_attn.q_proj.lora_A.weight",
        "params.PaliGemma.llm.layers.attn.q_einsum.lora_a",
        "params.PaliGemma.llm.layers.mlp.gating_einsum_lora_b",
    ],
)
def test_lora_matrices_are_refused(tmp_path, name):
    save_file({name: torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=rf"LoRA matrices \({name}\)"), open_stored(tmp_path):
        pass


@pytest.mark.parametrize(("text", "match"), [("{", "is not JSON"), ("[1]", "JSON object")])
def test_config_that_is_none_is_refused(tmp_path, text, match):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=match), open_stored(tmp_path):
        pass


def test_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="not a folder"), open_stored(tmp_path / "nowhere"):
        pass


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["float99", "nn", "", 5, True, ["float32"], {"vision": "float3"}], ids=repr)
def test_a_dtype_that_is_none_is_named_with_its_field(tmp_path, field, value):
    (tmp_path / "config.json").write_text(json.dumps({field: value}))
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    message = rf"config\.json: '{field}' must be one of float32, bfloat16, float16, float64, got "
    with unchanged(tmp_path), pytest.raises(WeightsError, match=message), open_stored(tmp_path):
        pass


@pytest.mark.parametrize(
    "value", ["float32", "torch.bfloat16", None, "auto", {"vision": "float16"}], ids=repr
)
def test_dtypes_as_others_write_them(tmp_path, value):
    (tmp_path / "config.json").write_text(json.dumps({"dtype": value}))
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    with open_stored(tmp_path) as stored:
        assert stored.config == {"dtype": value}
