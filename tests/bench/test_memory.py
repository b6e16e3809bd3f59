"""The memory prediction: parameters against the real policies, peaks against steps followed byte by byte."""

from dataclasses import replace

import pytest
import torch

from tests.bench.saved_bytes import StepBytes, adapt, freeze, make, make_batch, step_peak
from vla.adapters.lora import AdapterConfig, add_adapter, cast_trained
from vla.adapters.quantize import quantize_base
from vla.bench import tensors
from vla.bench.activations import Load
from vla.bench.memory import FLOAT32, MASTER, PURE, Settings, TrainingPlan, memory_table
from vla.bench.tensors import RANKS, count_tensors
from vla.errors import ConfigError
from vla.policies.registry import make_config

FULL, LORA, EXPERT = "full fine-tuning", "LoRA fine-tuning", "expert fine-tuning"
DTYPES = {FLOAT32: torch.float32, MASTER: torch.float32, PURE: torch.bfloat16}
EVERY = {"none": None, "all": 1, "every_2": 2}
each_policy = pytest.mark.parametrize("name", ["pi0", "pi05"])


def rows(config, **options):
    return {(row.use, row.precision, row.optimizer): row for row in memory_table(config, **options)}


def test_the_expert_alone_learns_no_text():
    config = make_config("pi0", {}, "tiny")
    silent, spoken = (rows(config, text_tokens=tokens) for tokens in (0, 8))
    keys = [key for key in silent if key[0] == EXPERT]
    assert len(keys) == 6
    assert all(silent[key] == spoken[key] for key in keys)
    assert spoken[FULL, FLOAT32.name, "AdamW"] != silent[FULL, FLOAT32.name, "AdamW"]


# -- against real steps -------------------------------------------------------------------------------


def predicted(policy, load, precision, use=FULL, checkpointing="none"):
    tensors, settings = count_tensors(policy.config, text=load.text > 0), Settings(checkpointing)
    plan = TrainingPlan(policy.config, tensors, load, use, precision, "AdamW", settings)
    return plan.row().total_gb * 1e9


@each_policy
@pytest.mark.parametrize("precision", DTYPES, ids=lambda precision: precision.name)
@pytest.mark.parametrize("checkpointing", EVERY)
def test_the_peak_of_a_full_step_on_a_tiny_policy(name, precision, checkpointing):
    policy = make(name, dtype=DTYPES[precision])
    if checkpointing != "none":
        policy.activation_checkpointing_enable(every_n_layers=EVERY[checkpointing])
    batch = make_batch(policy.config, 8, 3, 12)
    peak = step_peak(policy, batch, precision.autocast)
    load = Load(8, 3, 12, fused_norms=False)
    assert predicted(policy, load, precision, FULL, checkpointing) == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize(
    ("name", "precision", "checkpointing"),
    [("pi0", FLOAT32, "none"), ("pi0", MASTER, "all"), ("pi05", PURE, "all"), ("pi05", MASTER, "every_2")],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_peak_of_a_full_step_on_a_middle_policy(name, precision, checkpointing):
    policy = make(name, "middle", DTYPES[precision])
    if checkpointing != "none":
        policy.activation_checkpointing_enable(every_n_layers=EVERY[checkpointing])
    peak = step_peak(policy, make_batch(policy.config, 1, 1, 12), precision.autocast)
    load = Load(1, 1, 12, fused_norms=False)
    assert predicted(policy, load, precision, FULL, checkpointing) == pytest.approx(peak, rel=0.05)


@each_policy
@pytest.mark.parametrize("precision", DTYPES, ids=lambda precision: precision.name)
@pytest.mark.parametrize("checkpointing", ["none", "all"])
@pytest.mark.parametrize("vocabulary", [256, 20_000])
def test_the_peak_of_a_step_with_text(name, precision, checkpointing, vocabulary):
    policy = make(name, dtype=DTYPES[precision], vocab_size=vocabulary)
    if checkpointing != "none":
        policy.activation_checkpointing_enable()
    batch = make_batch(policy.config, 8, 2, 12, 8)
    peak = step_peak(policy, batch, precision.autocast)
    load = Load(8, 2, 12, fused_norms=False, text=8)
    assert predicted(policy, load, precision, FULL, checkpointing) == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("checkpointing", EVERY)
def test_the_peak_of_an_insulated_step(checkpointing):
    policy = make("pi0", knowledge_insulation=True)
    freeze(policy, policy.prefixes_without_gradient(False))
    if checkpointing != "none":
        policy.activation_checkpointing_enable(every_n_layers=EVERY[checkpointing])
    peak = step_peak(policy, make_batch(policy.config, 8, 3, 12))
    load = Load(8, 3, 12, fused_norms=False)
    assert predicted(policy, load, FLOAT32, FULL, checkpointing) == pytest.approx(peak, rel=0.15)


@each_policy
@pytest.mark.parametrize("precision", DTYPES, ids=lambda precision: precision.name)
@pytest.mark.parametrize("preset", ["tiny", "middle"])
def test_the_peak_of_a_step_of_the_expert_alone(name, precision, preset):
    policy = make(name, preset, DTYPES[precision])
    freeze(policy, policy.parts.frozen_prefixes("vlm"))
    size = 1 if preset == "middle" else 8
    peak = step_peak(policy, make_batch(policy.config, size, 3, 12), precision.autocast)
    load = Load(size, 3, 12, fused_norms=False)
    assert predicted(policy, load, precision, EXPERT) == pytest.approx(peak, rel=0.1)


@each_policy
@pytest.mark.parametrize("precision", [FLOAT32, MASTER], ids=lambda precision: precision.name)
def test_the_peak_of_a_step_with_adapters(name, precision):
    sizes = {"vlm": {"width": 256, "mlp_dim": 1024}, "expert": {"width": 128, "mlp_dim": 512}}
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
    with StepBytes(batch) as count, torch.no_grad(), autocast:
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
    large = rows(make_config(name), batch_size=32, settings=Settings("all"))
    assert large[FULL, MASTER.name, "AdamW"].total_gb <= 80
    assert table["inference", PURE.name, "none"].total_gb <= 8


def test_every_way_is_there_once():
    table = memory_table(make_config("pi0", {}, "tiny"))
    keys = [(row.use, row.precision, row.optimizer) for row in table]
    assert len(set(keys)) == len(keys) == 3 + 6 + 4 + 6 + 6
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
    monkeypatch.setitem(tensors.RANKS, "expert", RANKS["language"])
    policy = make(name, "middle", torch.bfloat16)
    predicted = rows(policy.config)["QLoRA fine-tuning", MASTER.name, "AdamW"].weights_gb * 1e9
    quantize_base(policy, "4bit")
    add_adapter(policy, AdapterConfig(preset="vlm+expert", rank=RANKS["language"]))
    cast_trained(policy, torch.float32)
    stored = [p for p in policy.parameters() if not p.is_floating_point()]
    counted = [tensor for tensor in count_tensors(policy.config) if tensor.quantized]
    assert len(stored) == len(counted) == 6 * (6 + 7 + 7)
    assert sum(p.numel() for p in stored) == sum(tensor.size for tensor in counted) / 2
    scales = [s for p in stored for s in (p.quant_state.absmax, p.quant_state.state2.absmax)]
    held = sum(tensor.nbytes for tensor in (*policy.parameters(), *scales))
    assert predicted == pytest.approx(held, rel=1e-4)


def test_four_bits_are_an_eighth_and_their_scales():
    config = make_config("pi0", {}, "middle")
    tensors, table = count_tensors(config), rows(config)
    stored = sum(tensor.size for tensor in tensors if tensor.quantized)
    saved = (
        table[LORA, PURE.name, "AdamW"].weights_gb - table["QLoRA fine-tuning", PURE.name, "AdamW"].weights_gb
    )
    assert saved * 1e9 == pytest.approx(stored * (2 - 0.5 - 1 / 64 - 4 / (64 * 256)))


def test_fewer_cameras_and_words_take_less():
    config = make_config("pi05", {}, "tiny")
    key = (FULL, FLOAT32.name, "AdamW")
    whole = rows(config, batch_size=64)[key]
    assert rows(config, batch_size=64, cameras=1)[key].activations_gb < whole.activations_gb
    # In bfloat16 images are copied however many there are; in float32 where a camera is absent.
    mixed = (FULL, MASTER.name, "AdamW")
    one, three = (rows(config, batch_size=64, cameras=cameras)[mixed] for cameras in (1, 3))
    assert one.activations_gb < 0.8 * three.activations_gb
    assert rows(config, batch_size=64, prompt_tokens=8)[key].activations_gb < whole.activations_gb
    assert rows(config, batch_size=64, settings=Settings("all"))[key].total_gb < whole.total_gb
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


def test_a_policy_too_small_to_be_quantised_has_a_table(monkeypatch):
    config = make_config("pi0", {}, "tiny")
    small = [replace(one, quantized=False) for one in count_tensors(config)]  # no axis of 64 values
    monkeypatch.setattr("vla.bench.memory.count_tensors", lambda config, text=False: small)
    table = rows(config)
    for precision in (MASTER, PURE):  # nothing is in 4 bits, so that all it adds over LoRA is gone
        qlora, lora = (table[use, precision.name, "AdamW"] for use in ("QLoRA fine-tuning", LORA))
        assert qlora.weights_gb <= lora.weights_gb * 1.001
        assert 0 < qlora.total_gb < float("inf")
