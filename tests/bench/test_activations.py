"""The formula for activations against the tensors that autograd saves, counted one by one."""

import pytest
import torch

from tests.bench.saved_bytes import adapt, make, make_batch, saved_bytes
from vla.bench.activations import Load, acting_bytes, kept_bytes
from vla.bench.memory import FLOAT32, MASTER, PURE, TrainingPlan
from vla.bench.tensors import RANKS, count_tensors
from vla.errors import ConfigError

ALL = dict.fromkeys(("vision", "language", "expert"), "trained")
DTYPES = {FLOAT32: torch.float32, MASTER: torch.float32, PURE: torch.bfloat16}
each_policy = pytest.mark.parametrize("name", ["pi0", "pi05"])
each_precision = pytest.mark.parametrize("precision", DTYPES, ids=lambda precision: precision.name)


def predicted(config, load, precision, use="full fine-tuning"):
    """The formula's bytes, with the copies that mixed precision makes of the weights."""
    plan = TrainingPlan(config, count_tensors(config, text=load.text > 0), load, use, precision, "AdamW")
    return sum(part.whole for part in plan._kept().values()) + sum(plan._copies().values())


@each_policy
@each_precision
@pytest.mark.parametrize(("batch", "cameras", "draws"), [(1, 3, 1), (3, 1, 2), (2, 2, 4)])
def test_tiny(name, precision, batch, cameras, draws):
    policy = make(name, dtype=DTYPES[precision], draws_per_observation=draws)
    saved = saved_bytes(policy, make_batch(policy.config, batch, cameras, 12), precision.autocast)
    load = Load(batch, cameras, 12, draws, fused_norms=False)
    assert predicted(policy.config, load, precision) == pytest.approx(saved, rel=0.06)


@each_policy
@each_precision
def test_middle(name, precision):
    policy = make(name, "middle", DTYPES[precision])
    saved = saved_bytes(policy, make_batch(policy.config, 1, 1, 20), precision.autocast)
    load = Load(1, 1, 20, fused_norms=False)
    assert predicted(policy.config, load, precision) == pytest.approx(saved, rel=0.01)


@each_policy
@pytest.mark.parametrize("precision", [FLOAT32, MASTER], ids=lambda precision: precision.name)
@pytest.mark.parametrize("text", [0, 8])
def test_with_adapters(name, precision, text):
    sizes = {"vlm": {"width": 256, "mlp_dim": 1024}, "expert": {"width": 128, "mlp_dim": 512}}
    policy = make(name, **sizes, vocab_size=4000)
    dtype = torch.bfloat16 if precision is MASTER else torch.float32
    policy = adapt(policy, RANKS, dtype)
    batch = make_batch(policy.config, 2, 3, 12, text)
    saved = saved_bytes(policy, batch, precision.autocast)
    load = Load(2, 3, 12, fused_norms=False, text=text)
    assert predicted(policy.config, load, precision, "LoRA fine-tuning") == pytest.approx(saved, rel=0.15)


@each_policy
@each_precision
@pytest.mark.parametrize(("batch", "text", "insulated"), [(4, 8, False), (2, 3, True)])
def test_with_text(name, precision, batch, text, insulated):
    policy = make(name, dtype=DTYPES[precision], vocab_size=4000, knowledge_insulation=insulated)
    saved = saved_bytes(policy, make_batch(policy.config, batch, 2, 12, text), precision.autocast)
    load = Load(batch, 2, 12, fused_norms=False, text=text)
    assert predicted(policy.config, load, precision) == pytest.approx(saved, rel=0.06)


@each_policy
def test_text_at_middle_size(name):
    policy = make(name, "middle")
    saved = saved_bytes(policy, make_batch(policy.config, 1, 1, 20, 8), autocast=True)
    load = Load(1, 1, 20, fused_norms=False, text=8)
    assert predicted(policy.config, load, MASTER) == pytest.approx(saved, rel=0.01)


def test_a_gpu_keeps_one_tensor_less_per_norm():
    config = make("pi0").config
    ways = [
        kept_bytes(config, Load(2, 3, 12, fused_norms=fused), FLOAT32, ALL, adaptive=False)
        for fused in (False, True)
    ]
    prefix = 2 * (3 * config.tokens_per_image + 12)
    norms = 2 * config.depth - 1  # the last layer of the prefix has one
    assert ways[0]["language"].whole - ways[1]["language"].whole == 4 * norms * prefix * 32


@each_policy
def test_everything_grows_with_the_batch(name):
    config = make(name).config
    one, four = (kept_bytes(config, Load(batch, 2, 12), PURE, ALL, adaptive=False) for batch in (1, 4))
    for part in ALL:
        assert four[part].whole == pytest.approx(4 * one[part].whole)
        # Where a part has one layer (or but one that runs whole), every second layer is every layer.
        alone = part == "language" and config.depth == 2
        assert one[part].stored == one[part].half if alone else one[part].stored < one[part].half
        assert one[part].half < one[part].whole
        assert one[part].recomputed < one[part].whole
    assert acting_bytes(config, Load(4, 2, 12), PURE) == 4 * acting_bytes(config, Load(1, 2, 12), PURE)


@pytest.mark.parametrize("text", [-1, 12])
def test_text_is_a_part_of_the_prompt(text):
    with pytest.raises(ConfigError, match=f"less than the 12 tokens that it is a part of, got {text}"):
        Load(1, 1, 12, text=text)


def test_what_is_frozen_with_its_input_keeps_nothing():
    kept = kept_bytes(make("pi0").config, Load(1, 3, 12), PURE, {**ALL, "vision": "frozen"}, adaptive=False)
    assert kept["vision"].whole == kept["vision"].stored == 0


@pytest.mark.parametrize("name", ["batch", "cameras", "prompt", "draws"])
def test_a_load_is_at_least_one_of_each(name):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        Load(**{"batch": 1, "cameras": 1, "prompt": 1, name: 0})
