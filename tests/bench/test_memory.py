"""The memory prediction: parameters against the real policies, peaks against steps followed byte by byte."""

import pytest
import torch

from tests.bench.saved_bytes import StepBytes, adapt, loss_of, make, make_batch, step_peak
from vla.bench import memory
from vla.bench.activations import Load
from vla.bench.memory import (
    FLOAT32,
    MASTER,
    PARTS,
    PURE,
    RANKS,
    TrainingPlan,
    count_parameters,
    count_tensors,
    memory_table,
)
from vla.errors import ConfigError
from vla.policies.adapters import AdapterConfig, add_adapter, cast_trained
from vla.policies.quantize import quantize_base
from vla.policies.registry import make_config

FULL, LORA = "full fine-tuning", "LoRA fine-tuning"
DTYPES = {FLOAT32: torch.float32, MASTER: torch.float32, PURE: torch.bfloat16}
each_policy = pytest.mark.parametrize("name", ["pi0", "pi05"])


def rows(config, **options):
    return {(row.use, row.precision, row.optimizer): row for row in memory_table(config, **options)}


# -- what is counted ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expert", "heads"), [("pi0", 311_464_960, 3_248_160), ("pi05", 427_932_672, 2_165_792)]
)
def test_full_size_parameters_are_the_published_ones(name, expert, heads):
    assert count_parameters(make_config(name)) == {
        "vision": 412_442_352 + 2_361_344,
        "table": 257_152 * 2048,
        "language": 1_981_884_416,
        "expert": expert,
        "heads": heads,
    }


@each_policy
@pytest.mark.parametrize("insulated", [False, True])
def test_tensors_and_their_gradients_are_the_policy_s_own(name, insulated):
    policy = make(name, insulate_backbone=insulated)
    loss_of(policy, make_batch(policy.config, 2, 3, 12), autocast=False).backward()
    counted = {tensor.name: tensor for tensor in count_tensors(policy.config)}
    real = dict(policy.named_parameters())
    assert {name: one.size for name, one in counted.items()} == {n: p.numel() for n, p in real.items()}
    assert {n for n, one in counted.items() if one.reached} == {
        n for n, p in real.items() if p.grad is not None
    }


@each_policy
def test_adapted_maps_are_the_linear_ones_of_both_stacks(name):
    config = make_config(name, {}, "tiny")
    adapted = [tensor for tensor in count_tensors(config) if tensor.maps]
    assert len(adapted) == 2 * 7 * config.depth
    assert {tensor.part for tensor in adapted} == set(RANKS)
    assert not [tensor.name for tensor in adapted if "norm" in tensor.name]


# -- against real steps -------------------------------------------------------------------------------


def predicted(policy, load, precision, use=FULL, checkpointing=False):
    config = policy.config
    plan = TrainingPlan(config, count_tensors(config), load, use, precision, "AdamW", checkpointing)
    return plan.row().total_gb * 1e9


@each_policy
@pytest.mark.parametrize("precision", DTYPES, ids=lambda precision: precision.name)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_a_full_step_on_a_tiny_policy(name, precision, checkpointing):
    policy = make(name, dtype=DTYPES[precision])
    if checkpointing:
        policy.activation_checkpointing_enable()
    batch = make_batch(policy.config, 8, 3, 12)
    peak = step_peak(policy, batch, precision.autocast)
    load = Load(8, 3, 12, fused_norms=False)
    assert predicted(policy, load, precision, FULL, checkpointing) == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize(
    ("name", "precision", "checkpointing"),
    [("pi0", FLOAT32, False), ("pi0", MASTER, True), ("pi05", PURE, True)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_peak_of_a_full_step_on_a_middle_policy(name, precision, checkpointing):
    policy = make(name, "middle", DTYPES[precision])
    if checkpointing:
        policy.activation_checkpointing_enable()
    peak = step_peak(policy, make_batch(policy.config, 1, 1, 12), precision.autocast)
    load = Load(1, 1, 12, fused_norms=False)
    assert predicted(policy, load, precision, FULL, checkpointing) == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_an_insulated_step(checkpointing):
    policy = make("pi0", insulate_backbone=True)
    if checkpointing:
        policy.activation_checkpointing_enable()
    peak = step_peak(policy, make_batch(policy.config, 8, 3, 12))
    load = Load(8, 3, 12, fused_norms=False)
    assert predicted(policy, load, FLOAT32, FULL, checkpointing) == pytest.approx(peak, rel=0.15)


@each_policy
@pytest.mark.parametrize("precision", [FLOAT32, MASTER], ids=lambda precision: precision.name)
def test_the_peak_of_a_step_with_adapters(name, precision):
    sizes = {"vlm": {"width": 256, "mlp_width": 1024}, "expert": {"width": 128, "mlp_width": 512}}
    policy = adapt(make(name, **sizes), RANKS, torch.bfloat16 if precision is MASTER else torch.float32)
    peak = step_peak(policy, make_batch(policy.config, 4, 3, 12), precision.autocast)
    load = Load(4, 3, 12, fused_norms=False)
    assert predicted(policy, load, precision, LORA) == pytest.approx(peak, rel=0.15)


@each_policy
@pytest.mark.parametrize("precision", DTYPES, ids=lambda precision: precision.name)
@pytest.mark.parametrize("preset", ["tiny", "middle"])
def test_the_peak_of_acting(name, precision, preset):
    policy = make(name, preset, DTYPES[precision]).eval()
    batch = make_batch(policy.config, 1 if preset == "middle" else 8, 3, 12)
    del batch["actions"]
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision.autocast)
    with StepBytes() as count, torch.no_grad(), autocast:
        for parameter in policy.parameters():
            count.add(parameter)
        policy.sample_actions(**batch, num_steps=2)
    table = rows(policy.config, batch_size=len(batch["state"]), prompt_tokens=12)
    assert table["inference", precision.name, "none"].total_gb * 1e9 == pytest.approx(count.peak, rel=0.15)


# -- the table ----------------------------------------------------------------------------------------


@each_policy
def test_full_size_fits_the_cards_it_should(name):
    table = rows(make_config(name))
    assert table[LORA, MASTER.name, "AdamW"].total_gb <= 16
    assert table["QLoRA fine-tuning", MASTER.name, "AdamW"].total_gb <= 10
    assert table[FULL, MASTER.name, "AdamW"].total_gb <= 80
    large = rows(make_config(name), batch_size=32, checkpointing=True)
    assert large[FULL, MASTER.name, "AdamW"].total_gb <= 80
    assert table["inference", PURE.name, "none"].total_gb <= 8


def test_every_way_is_there_once():
    table = memory_table(make_config("pi0", {}, "tiny"))
    keys = [(row.use, row.precision, row.optimizer) for row in table]
    assert len(set(keys)) == len(keys) == 3 + 6 + 4 + 6
    for row in table:
        parts = row.weights_gb + row.gradients_gb + row.optimizer_gb + row.activations_gb
        assert row.weights_gb + row.optimizer_gb < row.total_gb
        assert row.total_gb < 1.5 * parts


def test_bytes_per_weight():
    config = make_config("pi0", {}, "tiny")
    table, tensors = rows(config), count_tensors(config)
    everything = sum(tensor.size for tensor in tensors)
    reached = sum(tensor.size for tensor in tensors if tensor.reached)
    row = table[FULL, FLOAT32.name, "AdamW"]
    assert (row.weights_gb, row.gradients_gb, row.optimizer_gb) == pytest.approx(
        (4e-9 * everything, 4e-9 * reached, 8e-9 * reached)
    )
    pure = table[FULL, PURE.name, "AdamW"]
    assert pure.weights_gb + pure.gradients_gb + pure.optimizer_gb == pytest.approx(
        (row.weights_gb + row.gradients_gb + row.optimizer_gb) / 2
    )
    small = sum(tensor.size for tensor in tensors if tensor.reached and tensor.size < 4096)
    quantised = table[FULL, FLOAT32.name, "8-bit AdamW"].optimizer_gb * 1e9
    assert quantised == pytest.approx(8 * small + (reached - small) * (2 + 8 / 256))


@each_policy
def test_a_base_in_4_bits_takes_what_is_predicted(name, monkeypatch):
    monkeypatch.setitem(memory.RANKS, "expert", memory.RANKS["language"])
    policy = make(name, "middle", torch.bfloat16)
    predicted = rows(policy.config)["QLoRA fine-tuning", MASTER.name, "AdamW"].weights_gb * 1e9
    quantize_base(policy, "4bit")
    add_adapter(policy, AdapterConfig(preset="vlm+expert", rank=memory.RANKS["language"]))
    cast_trained(policy, torch.float32)
    stored = [p for p in policy.parameters() if not p.is_floating_point()]
    counted = [tensor for tensor in count_tensors(policy.config) if tensor.quantized]
    assert len(stored) == len(counted) == 6 * (6 + 7 + 7)
    assert sum(p.numel() for p in stored) == sum(tensor.size for tensor in counted) / 2
    scales = [s for p in stored for s in (p.quant_state.absmax, p.quant_state.state2.absmax)]
    held = sum(tensor.nbytes for tensor in (*policy.parameters(), *scales))
    assert predicted == pytest.approx(held, rel=1e-4)


def test_maps_that_do_not_fit_keep_16_bits():
    kept = [t for t in count_tensors(make_config("pi0")) if ".layers." in t.name and not t.quantized]
    matrices = [tensor.name for tensor in kept if tensor.size > 1e6]
    # SigLIP's MLP is 4304 wide.
    assert len(matrices) == 27
    assert all("vision_tower" in name and name.endswith("mlp.fc2.weight") for name in matrices)


def test_four_bits_are_an_eighth_and_their_scales():
    config = make_config("pi0", {}, "middle")
    tensors, table = count_tensors(config), rows(config)
    maps = sum(tensor.size for tensor in tensors if tensor.quantized)
    saved = (
        table[LORA, PURE.name, "AdamW"].weights_gb - table["QLoRA fine-tuning", PURE.name, "AdamW"].weights_gb
    )
    assert saved * 1e9 == pytest.approx(maps * (2 - 0.5 - 1 / 64 - 4 / (64 * 256)))


def test_fewer_cameras_and_words_take_less():
    config = make_config("pi05", {}, "tiny")
    key = (FULL, FLOAT32.name, "AdamW")
    whole = rows(config, batch_size=64)[key]
    assert rows(config, batch_size=64, cameras=1)[key].activations_gb < 0.8 * whole.activations_gb
    assert rows(config, batch_size=64, prompt_tokens=8)[key].activations_gb < whole.activations_gb
    assert rows(config, batch_size=64, checkpointing=True)[key].total_gb < whole.total_gb
    assert whole == rows(config, batch_size=64, cameras=3, prompt_tokens=64)[key]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cameras": 4}, "cameras is 4, but this policy takes at most 3"),
        ({"prompt_tokens": 17}, "prompt_tokens is 17, but this policy takes at most 16"),
        ({"batch_size": 0}, "batch must be at least 1, got 0"),
        ({"cameras": 0}, "cameras must be at least 1, got 0"),
    ],
)
def test_what_the_policy_does_not_take(options, said):
    with pytest.raises(ConfigError, match=said):
        memory_table(make_config("pi0", {}, "tiny"), **options)


def test_another_config_is_no_policy():
    with pytest.raises(ConfigError, match="no policy with a dict"):
        memory_table({})


def test_parts_have_no_gap():
    config = make_config("pi0", {}, "tiny")
    assert {tensor.part for tensor in count_tensors(config)} == set(PARTS)
