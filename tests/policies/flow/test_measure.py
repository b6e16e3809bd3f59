"""The formula for a training step's operations against PyTorch's own count of what it runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.bench.saved_bytes import make, make_batch
from vla.adapters.lora import AdapterConfig, add_adapter
from vla.bench.flops import count_flops
from vla.policies.flow.cache import pack_prefix
from vla.policies.flow.measure import BatchShape

each_policy = pytest.mark.parametrize("name", ["pi0", "pi05"])


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
    said = policy.training_flops(draws)(batch)
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
    frozen = policy.training_flops()(batch)
    assert frozen == counted(policy, batch)
    assert frozen < make(name).training_flops()(batch)


@each_policy
@pytest.mark.parametrize("preset", ["expert", "vlm+expert", "attention", "all-linear"])
def test_adapters_count_and_their_base_has_no_gradient(name, preset):
    policy = make(name)
    add_adapter(policy, AdapterConfig(preset=preset, rank=2))
    policy.train()
    batch = with_text(policy)
    assert policy.training_flops()(batch) == counted(policy, batch)


@each_policy
def test_a_prefix_that_was_kept_leaves_all_but_the_expert_out(name):
    policy = make(name)
    for parameter, tensor in policy.named_parameters():
        tensor.requires_grad_(not parameter.startswith(policy.parts.frozen_prefixes("vlm")))
    batch = make_batch(policy.config, 2, 3, 12)
    whole = policy.training_flops()(batch)
    seen = [batch.pop(key) for key in ("pixel_values", "pixel_mask", "input_ids", "attention_mask")]
    with torch.no_grad():
        keys_values, mask = pack_prefix(policy.model.encode_prefix(*seen).cache)
    for key in ("token_type_ids", "labels"):
        batch.pop(key, None)
    batch |= {"prefix_keys_values": keys_values, "prefix_mask": mask}
    alone = policy.training_flops()(batch)
    assert alone == counted(policy, batch)
    assert alone < whole / 2


@each_policy
def test_features_in_place_of_pictures_leave_the_tower_out(name):
    policy = make(name)
    policy.model.vision_tower.requires_grad_(False)
    batch = make_batch(policy.config, 2, 3, 12)
    whole = policy.training_flops()(batch)
    images = batch.pop("pixel_values")
    batch["image_features"] = torch.stack([policy.model.encode_images(one) for one in images]).detach()
    kept = policy.training_flops()(batch)
    assert kept == counted(policy, batch)
    assert kept < whole


def test_what_is_computed_again_is_not_needed_twice():
    policy = make("pi0")
    batch = make_batch(policy.config, 2, 3, 12)
    said = policy.training_flops()(batch)
    policy.activation_checkpointing_enable()
    assert policy.training_flops()(batch) == said < counted(policy, batch)


def test_regression_draws_once():
    policy = make("pi0", action_objective="regression")
    batch = make_batch(policy.config, 2, 3, 12)
    assert policy.training_flops(4)(batch) == counted(policy, batch, draws_per_observation=4)


def test_a_full_size_step_is_six_operations_per_weight_and_token():
    """PaLM's rule of thumb, on the parts where it holds: the prefix's weights, once per token."""
    from vla.bench.tensors import count_parameters

    with torch.device("meta"):
        policy = make("pi0", preset=None)
    shape = {"pixel_values": torch.empty(1, 3, 3, 224, 224, device="meta")}
    batch = {
        **shape,
        "pixel_mask": torch.ones(1, 3, dtype=torch.bool),
        "attention_mask": torch.ones(1, 48, dtype=torch.long),
        "actions": torch.zeros(1, 50, 32),
    }
    parts = count_parameters(policy.config)
    tokens = {"vision": 768, "language": 816, "expert": 51}
    rule = sum(6 * parts[part] * number for part, number in tokens.items())
    assert policy.training_flops()(batch) == pytest.approx(rule, rel=0.1)


def test_one_shape_is_counted_once(monkeypatch):
    policy = make("pi0")
    count, batch = policy.training_flops(), make_batch(policy.config, 2, 3, 12)
    first = count(batch)
    monkeypatch.setattr("vla.policies.flow.measure._Walk", None)
    assert count(make_batch(policy.config, 2, 3, 12)) == first
    with pytest.raises(TypeError):
        count(make_batch(policy.config, 2, 2, 12))


def test_shape_of_a_batch():
    policy = make("pi0")
    batch = with_text(policy)
    assert BatchShape.of(batch, True) == BatchShape(3, 8, 3, 9, 9, policy.config.action_horizon, False)
    assert BatchShape.of(batch, False).num_supervised_tokens is None


@each_policy
def test_an_example_batch_is_trained_on_and_acted_upon(name):
    policy = make(name).eval()
    batch = policy.example_batch(2, cameras=2, text_tokens=5, training=True)
    again = policy.example_batch(2, cameras=1, text_tokens=5)
    assert policy(**batch).loss.isfinite()
    assert policy.sample_actions(**again).shape == batch.pop("actions").shape
    assert batch.keys() == again.keys()
    assert all(batch[key].equal(again[key]) for key in again if key != "pixel_mask")
    assert (batch.pop("pixel_mask").sum(), again["pixel_mask"].sum()) == (4, 2)
    other = policy.example_batch(2, text_tokens=5, seed=2)
    assert not any(batch[key].equal(other[key]) for key in ("pixel_values", "input_ids", "state"))
    assert policy.example_batch(1)["input_ids"].shape == (1, policy.config.max_prompt_length)


@each_policy
def test_a_sample_is_a_prefix_and_ten_steps(name):
    policy = make(name).eval()
    batch = policy.example_batch(1)
    cost = {part: count_flops(work) for part, work in policy.timed_parts(batch).items()}
    assert cost.keys() == {"prefix", "velocity step"}
    whole = count_flops(lambda: policy.sample_actions(**batch))
    # pi-0.5 makes the modulations of all times in one go, that of the last step's end among them.
    assert whole == pytest.approx(
        cost["prefix"] + 10 * cost["velocity step"], rel=0 if name == "pi0" else 0.005
    )
