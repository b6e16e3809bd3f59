"""Adapters: what they change, what they leave, and that disk, merging and `peft` itself agree with memory."""

import json
import re
import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import vla
from tests.folders import contents_of
from tests.parity.transformers_pi0 import make_batch, perturb
from tests.policies.conftest import make_robot_policy
from vla.adapters.files import load_adapter, load_with_base, merge
from vla.adapters.lora import (
    AdapterConfig,
    adapter_names,
    add_adapter,
    fingerprint,
    fold_in,
    remove_adapter,
    set_adapter,
)
from vla.atomic import SaveError
from vla.errors import ConfigError, MissingDependencyError, VlaError, WeightsError
from vla.nn.linear import Linear
from vla.policies.registry import make_policy

WHOLE = {
    "pi0": ["state_proj", "action_in_proj", "action_time_mlp_in", "action_time_mlp_out", "action_out_proj"],
    "pi05": ["action_in_proj", "time_mlp_in", "time_mlp_out", "action_out_proj"],
}


@pytest.fixture
def base(tmp_path):
    make_robot_policy().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def policy(base):
    return vla.AutoPolicy.from_pretrained(base)


def shake(policy, seed):
    """Give every trained parameter another value, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def adapted(base, seed=1, **config):
    """A policy on `base` with an adapter that changes something."""
    policy = vla.AutoPolicy.from_pretrained(base)
    add_adapter(policy, AdapterConfig(rank=4, **config))
    shake(policy, seed)
    return policy.eval()


@torch.no_grad()
def velocity(policy):
    return policy(**make_batch(policy.config)).velocity


def adapted_maps(policy):
    return {name.rpartition(".lora_A")[0] for name, _ in policy.named_parameters() if ".lora_A." in name}


def test_a_fresh_adapter_changes_no_output_and_the_policy_stays_itself(policy):
    before = velocity(policy)
    add_adapter(policy)
    assert torch.equal(velocity(policy), before)
    assert type(policy).__name__ == "Pi0Policy"
    inner = policy.model.expert.layers[0].mlp.up_proj.base_layer
    assert isinstance(inner, Linear)  # its quick route to float32 products is still there


@pytest.mark.parametrize("name", ["pi0", "pi05"])
@pytest.mark.parametrize("preset", ["expert", "vlm+expert", "attention", "all-linear"])
def test_presets_adapt_the_maps_that_they_say(name, preset):
    policy = make_policy(name, preset="tiny")
    linear = {one for one, module in policy.named_modules() if isinstance(module, torch.nn.Linear)}
    add_adapter(policy, AdapterConfig(preset=preset))
    whole = {f"model.{one}" for one in WHOLE[name]}
    if preset == "all-linear":
        expected = linear - whole
        assert (name == "pi05") == any(one.endswith("layernorm.dense") for one in expected)
    else:
        stacks = ("model.expert.",) if preset == "expert" else ("model.expert.", "model.language_model.")
        parts = (".self_attn.",) if preset == "attention" else (".self_attn.", ".mlp.")
        expected = {one for one in linear if one.startswith(stacks) and any(part in one for part in parts)}
    assert adapted_maps(policy) == expected
    copies = {one for one, p in policy.named_parameters() if p.requires_grad and "modules_to_save" in one}
    assert {one.partition(".modules_to_save")[0] for one in copies} == whole


@pytest.mark.parametrize("name", ["pi0", "pi05"])
@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True}, {"preset": "all-linear"}])
def test_disk_and_merging_agree_with_memory(name, options, tmp_path):
    fresh = make_policy(name, preset="tiny")
    perturb(fresh)
    fresh.eval().save_pretrained(tmp_path / "base")
    policy = adapted(tmp_path / "base", **options)
    expected, plain = velocity(policy), velocity(fresh)
    assert (expected - plain).abs().max() > 1e-2
    policy.save_pretrained(tmp_path / "adapter")
    assert torch.equal(velocity(vla.AutoPolicy.from_pretrained(tmp_path / "adapter")), expected)
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = vla.AutoPolicy.from_pretrained(tmp_path / "merged")
    assert list(merged.state_dict()) == list(fresh.state_dict())
    torch.testing.assert_close(velocity(merged), expected, rtol=1e-5, atol=1e-5)


def test_layers_are_those_of_a_preset_or_of_targets():
    with pytest.raises(ConfigError, match=r"preset or of its targets, got both: 'expert' and 'q_proj'"):
        AdapterConfig(preset="expert", targets="q_proj")


def test_a_rank_beyond_the_layers_is_said(policy, caplog):
    add_adapter(policy, AdapterConfig(targets="q_proj", rank=4), "small")
    assert "rank" not in caplog.text
    add_adapter(policy, AdapterConfig(targets="q_proj", rank=1000), "large")
    assert "rank 1000 is more than" in caplog.text


def test_the_rank_decides_the_size_and_rslora_the_scale(base):
    policy = adapted(base, rslora=True, alpha=8)
    layer = policy.model.expert.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.shape[0] == 4
    assert layer.scaling["default"] == 8 / 4**0.5


def test_peft_reads_the_files(base, tmp_path):
    policy = adapted(base)
    policy.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 60_000
    theirs = peft.PeftModel.from_pretrained(vla.AutoPolicy.from_pretrained(base), str(tmp_path / "adapter"))
    assert torch.equal(velocity(theirs.eval()), velocity(policy))


def test_adapters_are_switched_with_their_pipelines(base, policy, tmp_path):
    plain, base_pipeline = velocity(policy), policy.pipeline
    several = {"left": base_pipeline, "right": make_robot_policy().pipeline}
    one, two = adapted(base, 1), adapted(base, 2, preset="attention")
    two.pipeline = make_robot_policy(action_horizon=3).pipeline
    two.save_pretrained(tmp_path / "two")
    one.pipelines = several
    one.save_pretrained(tmp_path / "one")
    load_adapter(policy, tmp_path / "one", "one")
    load_adapter(policy, tmp_path / "two", "two")
    assert adapter_names(policy) == ["one", "two"]
    for name, expected in (("one", one), ("two", two), ("one", one)):
        set_adapter(policy, name)
        assert torch.equal(velocity(policy), velocity(expected))
        assert {n.split(".")[-2] for n, p in policy.named_parameters() if p.requires_grad} == {name}
        assert (policy.pipeline is None, list(policy.pipelines)) == (
            (True, ["left", "right"]) if name == "one" else (False, [None])
        )
    set_adapter(policy, None)
    assert torch.equal(velocity(policy), plain)
    assert policy.pipeline is base_pipeline
    assert policy.pipelines == {None: base_pipeline}
    set_adapter(policy, "two")
    policy.save_pretrained(tmp_path / "again")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("again", "two"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    remove_adapter(policy, "two")
    set_adapter(policy, "one")
    assert torch.equal(velocity(policy), velocity(one))
    remove_adapter(policy, "one")
    assert all(parameter.requires_grad for parameter in policy.parameters())
    assert list(policy.state_dict()) == list(vla.AutoPolicy.from_pretrained(base).state_dict())


def test_folding_in_drops_the_others(base, tmp_path):
    policy = adapted(base, 1)
    policy.save_pretrained(tmp_path / "one")
    adapted(base, 2, preset="attention").save_pretrained(tmp_path / "two")
    expected = velocity(policy)
    load_adapter(policy, tmp_path / "two", "two")
    set_adapter(policy, "default")
    fold_in(policy)
    assert adapter_names(policy) == []
    torch.testing.assert_close(velocity(policy), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="No adapter is active"):
        fold_in(policy)


def test_the_fingerprint_is_of_the_base_alone_in_any_dtype(base, policy):
    before = fingerprint(policy)
    assert fingerprint(adapted(base, preset="all-linear")) == before
    assert fingerprint(vla.AutoPolicy.from_pretrained(base, dtype=torch.bfloat16)) == before
    with torch.no_grad():
        policy.model.expert.layers[-1].mlp.up_proj.weight.add_(0.01)
    assert fingerprint(policy) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_of_base_and_adapter(base, tmp_path, dtype):
    adapted(base).save_pretrained(tmp_path / "adapter")
    policy = vla.AutoPolicy.from_pretrained(tmp_path / "adapter", dtype=dtype)
    assert {parameter.dtype for parameter in policy.parameters()} == {dtype}
    merged = merge(tmp_path / "adapter", tmp_path / "merged", dtype="bfloat16")
    assert merged.dtype == torch.bfloat16


def test_config_of_the_base_is_remembered(base, tmp_path):
    policy = vla.AutoPolicy.from_pretrained(base, config={"action_horizon": 3})
    add_adapter(policy)
    policy.save_pretrained(tmp_path / "adapter")
    assert vla.AutoPolicy.from_pretrained(tmp_path / "adapter").config.action_horizon == 3
    with pytest.raises(ConfigError, match="are those of its training"):
        vla.AutoPolicy.from_pretrained(tmp_path / "adapter", config={"action_horizon": 4})


# -- what goes wrong -----------------------------------------------------------------------------------


def test_adapter_on_another_base_names_both_fingerprints(base, policy, tmp_path):
    adapted(base).save_pretrained(tmp_path / "adapter")
    other = make_robot_policy()
    with torch.no_grad():
        other.model.state_proj.weight.add_(1)
    with pytest.raises(WeightsError, match=f"{fingerprint(policy)}.*{fingerprint(other)}"):
        load_adapter(other, tmp_path / "adapter")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(WeightsError, match="only fits its own base"):
        load_with_base(tmp_path / "adapter", base=tmp_path / "other")
    assert adapter_names(other) == []


def test_unreachable_base_is_named(base, tmp_path):
    adapted(base).save_pretrained(tmp_path / "adapter")
    base.rename(tmp_path / "moved")
    with pytest.raises(WeightsError, match=f"needs its base {base}, which cannot be opened"):
        vla.AutoPolicy.from_pretrained(tmp_path / "adapter")
    assert load_with_base(tmp_path / "adapter", base=tmp_path / "moved").adapter == "default"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"preset": "exprt"}, "no adapter preset 'exprt'.*Did you mean 'expert'"),
        ({"targets": r"model\.expert\.layers\.0\.mlp\.upproj"}, "match no linear layer.*mlp.up_proj"),
        (
            {"targets": "x"},
            "match no linear layer.*There are .*q_proj, .*fc1, .*such as model",
        ),
        ({"targets": "("}, "not a valid expression"),
        ({"targets": ["q_proj", "qproj"]}, "targets 'qproj' match no linear layer.*Did you mean 'q_proj'"),
        ({"targets": "action_out_proj"}, "trained whole next to an adapter as it is: leave it out"),
        ({"targets": ""}, "as in .q_proj, v_proj.; got ''"),
        ({"targets": []}, "as in .q_proj, v_proj.; got .."),
        ({"targets": ["q_proj", 3]}, "as in .q_proj, v_proj.; got"),
        ({"rank": 0}, "rank must be"),
        ({"alpha": 0}, "alpha must be"),
        ({"dropout": 1.0}, "dropout must be"),
    ],
)
def test_wrong_configs_are_refused(policy, config, said):
    with pytest.raises(ConfigError, match=said):
        add_adapter(policy, AdapterConfig(**config))
    assert adapter_names(policy) == []


def test_an_expression_may_match_blocks_too(policy):
    add_adapter(policy, AdapterConfig(targets=r"model\.expert\.layers\.0\..*"))
    assert len(adapted_maps(policy)) == 7


def test_wrong_names_and_choices_are_refused(policy):
    add_adapter(policy, name="cube")
    with pytest.raises(ConfigError, match="has an adapter 'cube' already"):
        add_adapter(policy, name="cube")
    with pytest.raises(ConfigError, match="letters, digits"):
        add_adapter(policy, name="a.b")
    with pytest.raises(ConfigError, match=r"no adapter 'cub', only cube\. Did you mean 'cube'"):
        set_adapter(policy, "cub")
    with pytest.raises(ConfigError, match="no adapter 'x', nor any other"):
        set_adapter(make_robot_policy(), "x")
    with pytest.raises(ConfigError, match="freeze must be one of"):
        policy.parts.frozen_prefixes("all")


def test_an_adapter_of_unsaved_weights_is_not_saved(tmp_path):
    policy = make_robot_policy()
    add_adapter(policy)
    with pytest.raises(WeightsError, match="base was never saved"):
        policy.save_pretrained(tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_an_environment_without_peft_is_told_what_to_install(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'peft>=0\.20'"):
        add_adapter(policy)


def test_foreign_adapters_are_explained(policy, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match="merge it into its base"):
        vla.AutoPolicy.from_pretrained(tmp_path)
    for open_it in (lambda: load_adapter(policy, tmp_path), lambda: merge(tmp_path, tmp_path / "dst")):
        with pytest.raises(WeightsError, match="no adapter that was trained here"):
            open_it()


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def damage_tensors(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_tensors, "1 tensors are missing"),
        (lambda folder: change(folder / "adapter_config.json", r=5), "or of another shape"),
        (lambda folder: change(folder / "adapter_config.json", peft_type="IA3"), "not a LoRA but 'IA3'"),
        (
            lambda folder: change(folder / "adapter_config.json", target_modules="x"),
            "does not fit the policy",
        ),
        (lambda folder: change(folder / "adapter_config.json", r=0), "does not fit the policy"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "adapter_base.json").write_text("[]"), "JSON object"),
        (
            lambda folder: (folder / "adapter_base.json").write_text("{}"),
            "an adapter's base",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "cannot be read"),
    ],
)
def test_damaged_folders_change_nothing(base, policy, tmp_path, damage, said):
    adapted(base).save_pretrained(tmp_path / "adapter")
    damage(tmp_path / "adapter")
    (tmp_path / "adapter" / "x.safetensors").touch()
    before = velocity(policy)
    with pytest.raises(WeightsError, match=said):
        load_adapter(policy, tmp_path / "adapter")
    assert (policy.adapter, adapter_names(policy)) == (None, [])
    assert torch.equal(velocity(policy), before)


def test_nothing_is_overwritten(base, tmp_path):
    adapted(base).save_pretrained(tmp_path / "adapter")
    with pytest.raises(SaveError, match="not empty"):
        merge(tmp_path / "adapter", base)
    before = contents_of(base)
    with pytest.raises(
        SaveError, match=r"base is the base of adapters, which are of no use without it: .*adapter"
    ):
        adapted(base).save_pretrained(base)
    assert contents_of(base) == before


@pytest.fixture(scope="module")
def one_adapter(tmp_path_factory):
    """An adapter's folder with its base, made once."""
    folder = tmp_path_factory.mktemp("adapters")
    make_robot_policy().save_pretrained(folder / "base")
    adapted(folder / "base").save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.fixture
def adapter_folder(one_adapter, tmp_path):
    return Path(shutil.copytree(one_adapter, tmp_path / "adapter"))


def _as_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "field", ["r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "rank_pattern"]
)
@pytest.mark.parametrize("value", ["8", None, [], [None], {"a": "b"}, -1.5, True])
def test_a_field_of_the_config_of_another_kind_is_refused_or_harmless(adapter_folder, field, value):
    path = adapter_folder / "adapter_config.json"
    fields = json.loads(path.read_text()) | {field: value}
    path.write_text(json.dumps(fields))
    before = _as_bytes(adapter_folder)
    said = str(adapter_folder)
    try:
        vla.AutoPolicy.from_pretrained(adapter_folder)
    except VlaError as error:
        said = str(error)
    else:
        assert field in ("lora_dropout", "target_modules", "rank_pattern")
    assert str(adapter_folder) in said
    assert _as_bytes(adapter_folder) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_neither_read_nor_merged_nor_written(
    adapter_folder, tmp_path, value
):
    file = adapter_folder / "adapter_model.safetensors"
    policy = vla.AutoPolicy.from_pretrained(adapter_folder)
    tensors = load_file(file)
    key = sorted(tensors)[0]
    tensors[key].view(-1)[3] = value
    save_file(tensors, file)
    before = _as_bytes(adapter_folder)
    for read in (vla.load, lambda folder: merge(folder, tmp_path / "merged")):
        with pytest.raises(
            WeightsError, match=f"(?s){re.escape(key)}.*{value}.*first value that is not finite"
        ):
            read(adapter_folder)
    assert not (tmp_path / "merged").exists()
    with torch.no_grad():
        next(one for one in policy.parameters() if one.requires_grad).view(-1)[0] = value
    with pytest.raises(WeightsError, match="are not saved"):
        policy.save_pretrained(adapter_folder)
    assert _as_bytes(adapter_folder) == before
