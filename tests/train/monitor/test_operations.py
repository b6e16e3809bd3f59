"""The operations counted without values, against PyTorch's count of the real pass and closed forms."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.bench.saved_bytes import make, make_batch
from vla.adapters.lora import AdapterConfig, add_adapter
from vla.adapters.quantize import quantize_base
from vla.bench.flops import count_flops
from vla.policies.flow.cache import pack_prefix
from vla.train.monitor import operations as operations_module
from vla.train.monitor.operations import TrainingOperations, UncountedError

each_policy = pytest.mark.parametrize("name", ["pi0", "pi05"])


def operations(policy, batch):
    return TrainingOperations(policy)(batch, policy)


def counted(policy, batch, **options):
    """What PyTorch counts; attention as plain products, since fused kernels compute the scores twice."""

    def step():
        with sdpa_kernel(SDPBackend.MATH):
            policy(**batch, **options).loss.backward()

    return count_flops(step)


def with_text(policy, batch=3, cameras=3):
    """A batch with responses of two lengths, whose second observation lacks its last camera."""
    made = make_batch(policy.config, batch, cameras, 12)
    made["attention_mask"][:, 9:] = 0
    made["attention_mask"][0, 8:] = 0
    made["token_type_ids"] = torch.zeros_like(made["input_ids"])
    made["labels"] = torch.full_like(made["input_ids"], -100)
    for row, end in enumerate(made["attention_mask"].sum(1)):
        made["token_type_ids"][row, end - 3 : end] = 1
        made["labels"][row, end - 3 : end] = made["input_ids"][row, end - 3 : end]
    made["pixel_mask"][1, cameras - 1] = False
    return made


@each_policy
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("insulated", [False, True])
@pytest.mark.parametrize("draws", [1, 3])
def test_everything_trained(name, text, insulated, draws):
    policy = make(name, knowledge_insulation=insulated)
    batch = with_text(policy) if text else make_batch(policy.config, 2, 2, 12)
    policy.training_draws = draws
    said = operations(policy, batch)
    assert said == counted(policy, batch, draws_per_observation=draws)


@each_policy
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("freeze", ["vision", "vlm"])
def test_what_is_frozen_has_no_gradient_of_its_weights(name, freeze, text):
    policy = make(name)
    for parameter, tensor in policy.named_parameters():
        tensor.requires_grad_(not parameter.startswith(policy.parts.frozen_prefixes(freeze)))
    batch = with_text(policy)
    if not text:
        del batch["labels"]
    frozen = operations(policy, batch)
    assert frozen == counted(policy, batch)
    assert frozen < operations(make(name), batch)


@each_policy
@pytest.mark.parametrize("preset", ["expert", "vlm+expert", "attention", "all-linear"])
def test_adapters_count_and_their_base_has_no_gradient(name, preset):
    policy = make(name)
    add_adapter(policy, AdapterConfig(preset=preset, rank=2))
    policy.train()
    batch = with_text(policy)
    assert operations(policy, batch) == counted(policy, batch)


@each_policy
def test_a_prefix_that_was_kept_leaves_all_but_the_expert_out(name):
    policy = make(name)
    for parameter, tensor in policy.named_parameters():
        tensor.requires_grad_(not parameter.startswith(policy.parts.frozen_prefixes("vlm")))
    batch = make_batch(policy.config, 2, 3, 12)
    whole = operations(policy, batch)
    seen = [batch.pop(key) for key in ("pixel_values", "pixel_mask", "input_ids", "attention_mask")]
    with torch.no_grad():
        keys_values, mask = pack_prefix(policy.model.encode_prefix(*seen).cache)
    for key in ("token_type_ids", "labels"):
        batch.pop(key, None)
    batch |= {"prefix_keys_values": keys_values, "prefix_mask": mask}
    alone = operations(policy, batch)
    assert alone == counted(policy, batch)
    assert alone < whole / 2


@each_policy
def test_features_in_place_of_pictures_leave_the_tower_out(name):
    policy = make(name)
    policy.model.vision_tower.requires_grad_(False)
    batch = make_batch(policy.config, 2, 3, 12)
    whole = operations(policy, batch)
    images = batch.pop("pixel_values")
    batch["image_features"] = torch.stack([policy.model.encode_images(one) for one in images]).detach()
    kept = operations(policy, batch)
    assert kept == counted(policy, batch)
    assert kept < whole


def test_what_is_computed_again_is_not_needed_twice():
    policy = make("pi0")
    batch = make_batch(policy.config, 2, 3, 12)
    said = operations(policy, batch)
    policy.activation_checkpointing_enable()
    assert operations(policy, batch) == said < counted(policy, batch)


def test_regression_draws_once():
    policy = make("pi0", action_objective="regression")
    batch = make_batch(policy.config, 2, 3, 12)
    policy.training_draws = 4
    assert operations(policy, batch) == counted(policy, batch, draws_per_observation=4)


def test_a_full_size_step_is_six_operations_per_weight_and_token():
    """PaLM's rule of thumb, on the parts where it holds: the prefix's weights, once per token."""
    with torch.device("meta"):
        policy = make("pi0", preset=None)
    batch = make_batch(policy.config, 1, 3, 48)
    tokens = {"vision": 768, "projector": 768, "language_model": 816, "expert": 51}
    rule = sum(
        6 * one.numel() * tokens.get(policy.parts.of(name).name, 0)  # none for the table, which is looked up
        for name, one in policy.named_parameters()
    )
    assert operations(policy, batch) == pytest.approx(rule, rel=0.1)


def test_one_shape_is_counted_once_whatever_its_values(monkeypatch):
    policy = make("pi0")
    count, calls, run = TrainingOperations(policy), [], TrainingOperations._count
    monkeypatch.setattr(TrainingOperations, "_count", lambda *given: calls.append(1) or run(*given))
    first = count(make_batch(policy.config, 2, 3, 12), policy)
    assert count(make_batch(policy.config, 2, 3, 12), policy) == first
    assert len(calls) == 1
    lengths = [count(unequal(policy, rows), policy) for rows in ((12, 3), (5, 12), (12, 11))]
    assert lengths == [first] * 3  # padding is computed as well
    assert len(calls) == 2
    assert count(make_batch(policy.config, 2, 2, 12), policy) < first
    policy.model.vision_tower.requires_grad_(False)
    assert count(make_batch(policy.config, 2, 3, 12), policy) < first
    policy.training_draws = 2
    assert count(make_batch(policy.config, 2, 2, 12), policy) == counted(
        policy, make_batch(policy.config, 2, 2, 12), draws_per_observation=2
    )


def unequal(policy, lengths):
    batch = make_batch(policy.config, len(lengths), 3, max(lengths))
    batch["attention_mask"] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return batch


def test_shapes_beyond_the_bound_cost_what_the_most_similar_costs(monkeypatch):
    monkeypatch.setattr(operations_module, "MOST_SHAPES", 2)
    policy = make("pi0")
    count = TrainingOperations(policy)
    short, long = (count(make_batch(policy.config, 2, 3, length), policy) for length in (3, 12))
    assert short < long
    assert count(make_batch(policy.config, 2, 3, 4), policy) == short
    assert count(make_batch(policy.config, 2, 3, 11), policy) == long
    assert count(make_batch(policy.config, 2, 3, 12), policy) == long


def test_nothing_of_the_policy_is_touched():
    policy = make("pi0")
    fired = []
    policy.model.register_forward_hook(lambda *given: fired.append(1))
    policy.model.language_model.layers[0].mlp.register_full_backward_hook(lambda *given: fired.append(1))
    policy.compile_layers(backend=lambda graph, example: fired.append(1) or graph.forward)
    batch = make_batch(policy.config, 2, 3, 12)
    state, names = torch.get_rng_state(), [name for name, _ in policy.named_parameters()]
    weights = [weight.clone() for weight in policy.parameters()]
    assert operations(policy, batch) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert fired == []
    assert [name for name, _ in policy.named_parameters()] == names
    for before, weight in zip(weights, policy.parameters(), strict=True):
        assert weight.device.type == "cpu"
        assert weight.grad is None
        assert torch.equal(before, weight)


def test_a_base_in_4_bits_costs_what_it_would_in_32():
    pytest.importorskip("bitsandbytes")
    sizes = {"vlm": {"width": 64, "mlp_dim": 128}, "expert": {"width": 64, "mlp_dim": 128}}
    costs = []
    for quantise in (False, True):
        policy = make("pi0", **sizes)
        if quantise:
            quantize_base(policy, "4bit")
        add_adapter(policy, AdapterConfig(preset="vlm+expert", rank=2))
        costs.append(operations(policy.train(), make_batch(policy.config, 2, 3, 12)))
    assert costs[0] == costs[1] > 0


class Reading(nn.Module):
    """A policy whose pass asks for a value; [rows, 3] times [3, 5]."""

    config = pipelines = adapter_pipelines = tokenizer = training_draws = None

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def host_inputs(self, batch):
        return {}

    def forward(self, x):
        out = self.linear(x).sum()
        return SimpleNamespace(loss=out if out.item() > 0 else -out)


def test_a_pass_that_depends_on_values_is_named():
    policy = Reading()
    with pytest.raises(UncountedError, match=r"^Reading's pass depends on values.*item\(\)"):
        operations(policy, {"x": torch.ones(2, 3)})


def test_a_policy_that_cannot_be_copied_is_named():
    policy = Reading()
    policy.lock = threading.Lock()
    with pytest.raises(UncountedError, match=r"^Reading's pass .*cannot pickle '_thread.lock'"):
        operations(policy, {"x": torch.ones(2, 3)})
