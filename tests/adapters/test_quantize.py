"""A base in few bits: which weights, against values rounded by hand, and what it still can and cannot do."""

import json
import logging
import sys

import pytest
import torch
from safetensors.torch import load_file

import vla
from tests.bench.saved_bytes import StepBytes
from tests.parity.transformers_pi0 import make_batch, perturb
from vla.adapters.files import load_adapter, merge
from vla.adapters.lora import AdapterConfig, add_adapter, fingerprint, fold_in, remove_adapter
from vla.adapters.quantize import quantize_base
from vla.errors import ConfigError, MissingDependencyError, WeightsError
from vla.policies.registry import make_policy

SIZES = {
    "vision": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 28, "patch_size": 14,
    },
    "vlm": {"width": 128, "mlp_dim": 192},
    "expert": {"width": 64, "mlp_dim": 128},
    "num_heads": 4,
    "head_dim": 16,
}  # fmt: skip
"""Every map of a layer has a multiple of 64 inputs."""

# The values of NF4, from the appendix of arXiv 2305.14314.
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
        *(0.7229568362236023, 1.0),
    ]
)
NOISE = {"4bit": 0.1, "8bit": 0.01}
"""Largest error of normally distributed weights, relative to their size, root mean squares."""

each_policy = pytest.mark.parametrize("name", ["pi0", "pi05"])
each_kind = pytest.mark.parametrize("kind", ["4bit", "8bit"])


def make_base(name="pi0", **sizes):
    torch.manual_seed(0)
    policy = make_policy(name, {**SIZES, **sizes}, "tiny")
    perturb(policy)
    return policy.eval()


@pytest.fixture
def base(tmp_path):
    make_base().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def rounded(weight, kind):
    """The weights of a map as they are stored, by the plain way; bitsandbytes makes 8 bits from float16."""
    flat = weight.view(-1, 64) if kind == "4bit" else weight.half().float()
    scale = flat.abs().amax(dim=1, keepdim=True)
    if kind == "8bit":
        return (torch.round(flat / scale * 127) * scale / 127).view_as(weight)
    nearest = (flat[..., None] / scale[..., None] - NF4).abs().argmin(dim=-1)
    return (NF4[nearest] * scale).view_as(weight)


def layer_maps(policy):
    """The linear layers of all layers, modulations left out, found by what they lie in."""
    return {
        name: module
        for name, module in policy.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name and "layernorm" not in name
    }


@torch.no_grad()
def velocity(policy):
    return policy(**make_batch(policy.config)).velocity


def relative(difference, whole):
    return (difference.norm() / whole.norm()).item()


def integers(policy):
    """Name -> stored numbers, of the maps in few bits; a copy."""
    return {name: p.detach().clone() for name, p in policy.named_parameters() if not p.is_floating_point()}


@each_policy
@each_kind
def test_layers_are_stored_in_few_bits_and_nothing_else(name, kind):
    policy, plain = make_base(name), make_base(name)
    quantize_base(policy, kind)
    before = {name: module.weight for name, module in layer_maps(plain).items()}
    stored = integers(policy)
    assert {one.removesuffix(".weight") for one in stored} == before.keys()
    assert len(before) == 2 * (6 + 7 + 7)
    for one, weight in stored.items():
        assert weight.dtype == (torch.uint8 if kind == "4bit" else torch.int8)
        module = policy.get_submodule(one.removesuffix(".weight"))
        scales = {k: t for k, t in module.state_dict().items() if "absmax" in k or k == "SCB"}
        taken = weight.nbytes + sum(tensor.nbytes for tensor in scales.values())
        assert taken <= (0.6 if kind == "4bit" else 1.1) * before[one.removesuffix(".weight")].numel()
    others = dict(plain.named_parameters())
    for one, parameter in policy.named_parameters():
        assert one in stored or torch.equal(parameter, others[one]), one
        assert not parameter.requires_grad


@each_policy
@each_kind
def test_it_computes_with_the_rounded_weights(name, kind):
    policy, plain = make_base(name), make_base(name)
    exact = velocity(plain)
    quantize_base(policy, kind)
    for module in layer_maps(plain).values():
        weight = module.weight.detach()
        assert relative(rounded(weight, kind) - weight, weight) < NOISE[kind]
        weight.copy_(rounded(weight, kind))
    # Training, so that 8 bits multiply the rounded weights alone; scales of 4 bits are rounded as well.
    close = 2e-2 if kind == "4bit" else 5e-3
    assert relative(velocity(policy.train()) - velocity(plain), exact) < close
    for mode in (True, False):
        assert relative(velocity(policy.train(mode)) - exact, exact) < (0.5 if kind == "4bit" else 0.1)


def test_evaluating_leaves_the_stored_weights_and_the_gradients_alone():
    policy = make_base().to(torch.bfloat16)
    quantize_base(policy, "4bit")
    add_adapter(policy)
    before = integers(policy)
    with torch.autocast("cpu", torch.bfloat16):
        velocity(policy.eval())
        policy.train()(**make_batch(policy.config)).loss.backward()
    for name, weight in integers(policy).items():
        assert torch.equal(weight, before[name]), name
    trained = {name for name, one in policy.named_parameters() if one.requires_grad}
    assert {name for name, one in policy.named_parameters() if one.grad is not None} == trained
    assert all(policy.get_parameter(name).grad.abs().sum() > 0 for name in trained if ".lora_B." in name)


@each_kind
def test_gradients_are_those_of_the_rounded_weights(kind):
    grads = []
    for policy in (make_base(), make_base()):
        if grads:
            for module in layer_maps(policy).values():
                module.weight.detach().copy_(rounded(module.weight.detach(), kind))
        else:
            quantize_base(policy, kind)
        torch.manual_seed(1)
        add_adapter(policy, AdapterConfig(preset="vlm+expert", rank=4))
        batch = make_batch(policy.config)
        policy.train()(**batch, generator=torch.Generator().manual_seed(2)).loss.backward()
        grads.append({name: one.grad for name, one in policy.named_parameters() if one.grad is not None})
    ours, theirs = grads
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], rtol=0.1, atol=0.05 * theirs[name].abs().max().item())


@each_kind
def test_loading_quantises_and_the_rest_has_the_dtype(base, kind):
    policy = vla.AutoPolicy.from_pretrained(base, quantize=kind, dtype=torch.bfloat16)
    assert policy.quantized == kind
    assert {p.dtype for p in policy.parameters()} == {
        torch.bfloat16,
        torch.uint8 if kind == "4bit" else torch.int8,
    }
    assert fingerprint(policy) == fingerprint(vla.AutoPolicy.from_pretrained(base))
    ours = make_base().to(torch.bfloat16)
    quantize_base(ours, kind)
    assert integers(ours).keys() == integers(policy).keys()
    assert all(torch.equal(one, integers(policy)[name]) for name, one in integers(ours).items())


@each_kind
def test_there_is_never_a_second_copy_of_the_weights(kind):
    policy = make_base(depth=8).to(torch.bfloat16)
    whole = sum(parameter.nbytes for parameter in policy.parameters())
    largest = max(module.weight.nbytes for module in layer_maps(policy).values())
    with StepBytes() as count:
        for parameter in policy.parameters():
            count.add(parameter)
        del parameter
        quantize_base(policy, kind)
    few = sum(parameter.nbytes for parameter in policy.parameters())
    assert few < 0.7 * whole
    assert count.peak < whole + 4 * largest < whole + few
    assert count.now < few + 8 * largest


@each_kind
@pytest.mark.parametrize("options", [{}, {"dora": True}, {"preset": "all-linear"}])
def test_adapters_pass_between_a_quantised_base_and_the_base(base, tmp_path, kind, options):
    policy = vla.AutoPolicy.from_pretrained(base, quantize=kind)
    before = velocity(policy)
    add_adapter(policy, AdapterConfig(rank=4, **options))
    torch.testing.assert_close(velocity(policy), before, rtol=1e-4, atol=1e-4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    policy.save_pretrained(tmp_path / "adapter")
    assert not [path for path in (tmp_path / "adapter").iterdir() if path.name == "model.safetensors"]
    assert json.loads((tmp_path / "adapter" / "adapter_base.json").read_text())["quantize"] == kind

    again = vla.AutoPolicy.from_pretrained(tmp_path / "adapter", quantize=kind)
    assert torch.equal(velocity(again), velocity(policy))
    plain = vla.AutoPolicy.from_pretrained(tmp_path / "adapter")
    assert plain.quantized is None
    trained = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert trained
    for one in (again, plain):
        one.save_pretrained(tmp_path / f"again_{one.quantized}")
        written = load_file(tmp_path / f"again_{one.quantized}" / "adapter_model.safetensors")
        assert written.keys() == trained.keys()
        assert all(torch.equal(tensor, trained[key]) for key, tensor in written.items())
        said = json.loads((tmp_path / f"again_{one.quantized}" / "adapter_base.json").read_text())
        assert said["quantize"] == kind  # where it was trained, not where it was read


def test_merging_takes_the_base_itself_and_says_so(base, tmp_path, caplog):
    policy = vla.AutoPolicy.from_pretrained(base, quantize="4bit")
    add_adapter(policy)
    policy.save_pretrained(tmp_path / "adapter")
    with caplog.at_level(logging.WARNING):
        merged = merge(tmp_path / "adapter", tmp_path / "merged")
    assert "trained on a base in 4bit" in caplog.text
    plain = vla.AutoPolicy.from_pretrained(base)
    assert torch.equal(velocity(merged), velocity(plain))  # the adapter is fresh
    with pytest.raises(ConfigError, match=r"stored in 4bit.*full precision"):
        fold_in(policy)


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    torch.manual_seed(1)
    other = make_policy("pi0", SIZES, "tiny")
    other.save_pretrained(tmp_path / "other")
    strange = vla.AutoPolicy.from_pretrained(tmp_path / "other", quantize="4bit")
    add_adapter(strange)
    strange.save_pretrained(tmp_path / "adapter")
    with pytest.raises(WeightsError, match="only fits its own base"):
        load_adapter(vla.AutoPolicy.from_pretrained(base, quantize="4bit"), tmp_path / "adapter")


def test_taking_the_adapter_out_leaves_the_quantised_base(base):
    policy = vla.AutoPolicy.from_pretrained(base, quantize="4bit")
    before = velocity(policy)
    add_adapter(policy)
    remove_adapter(policy, "default")
    assert torch.equal(velocity(policy), before)
    assert not any(parameter.requires_grad for parameter in policy.parameters())
    with pytest.raises(WeightsError, match=r"stored in 4bit.*only an adapter"):
        policy.save_pretrained(base.parent / "whole")
    assert not (base.parent / "whole").exists()


def test_maps_that_do_not_fit_stay_and_are_counted(caplog):
    policy = make_base(expert={"width": 48, "mlp_dim": 96})
    with caplog.at_level(logging.INFO):
        quantize_base(policy, "4bit")
    assert "28 of 40 linear layers" in caplog.text
    assert "12 stay as they are" in caplog.text
    assert all(p.is_floating_point() for p in policy.model.expert.layers[0].mlp.parameters())
    assert policy.model.expert.layers[0].self_attn.o_proj.weight.dtype == torch.uint8  # 64 inputs


def test_what_cannot_be_quantised_is_refused(base):
    vision = {**SIZES["vision"], "hidden_size": 32, "intermediate_size": 24}
    stacks = {"vlm": {"width": 32, "mlp_dim": 16}, "expert": {"width": 8, "mlp_dim": 16}}
    small = make_base(vision=vision, **stacks, head_dim=8)
    with pytest.raises(ConfigError, match=r"None of .* 40 .* 8, 16, 24, 32 inputs.*multiple of 64"):
        quantize_base(small, "4bit")
    with pytest.raises(ConfigError, match="4bit, 8bit, got '2bit'"):
        vla.AutoPolicy.from_pretrained(base, quantize="2bit")
    policy = make_base()
    quantize_base(policy, "8bit")
    with pytest.raises(ConfigError, match=r"already \(8bit\)"):
        quantize_base(policy, "4bit")
    adapted = make_base()
    add_adapter(adapted)
    with pytest.raises(ConfigError, match="quantise its base first"):
        quantize_base(adapted, "4bit")


def test_missing_bitsandbytes_is_named(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vla\[quant\]'"):
        vla.AutoPolicy.from_pretrained(base, quantize="4bit")
