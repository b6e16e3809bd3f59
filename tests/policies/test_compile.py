"""Compiled layers, and the compiled pass, compute what they did, and are compiled a few times only."""

import copy
import pickle

import pytest
import torch
from torch._dynamo.utils import counters

from tests.parity.transformers_pi0 import make_batch, perturb
from tests.policies.flow.test_policy import with_response
from vla.adapters.lora import AdapterConfig, add_adapter
from vla.errors import ConfigError
from vla.policies.bc import BCConfig, BCPolicy
from vla.policies.flow.cache import pack_prefix
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy

TEXT = ("input_ids", "attention_mask", "token_type_ids", "labels")
MOST_GRAPHS = 8
"""Prefix, its last layer, expert and vision, each with and without what a mask or a cache adds."""


@pytest.fixture
def counted():
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    counters.clear()


def losses(policy, batch, lengths):
    """Return the loss for texts cut to every length, with its gradient taken."""
    found = []
    for length in lengths:
        cut = {name: value[:, :length] if name in TEXT else value for name, value in batch.items()}
        loss = policy(**cut, generator=torch.Generator().manual_seed(0)).loss
        loss.backward()
        found.append(loss.item())
    return found


def compare(family, backend, lengths, counted, **overrides):
    torch.manual_seed(0)
    policy = family(family.config_class.tiny(**overrides))
    perturb(policy)
    batch, names = with_response(make_batch(policy.config)), list(policy.state_dict())
    expected = losses(policy.train(), batch, lengths)
    policy.compile_layers(backend)
    assert list(policy.state_dict()) == names
    first = losses(policy, batch, lengths[:1])
    graphs = counted()
    assert 0 < graphs <= MOST_GRAPHS
    assert first + losses(policy, batch, lengths[1:]) == pytest.approx(expected, rel=1e-5)
    assert counted() == graphs  # no other length asked for another graph
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("family", [Pi0Policy, Pi05Policy])
def test_graphs_stay_few_over_text_lengths(family, counted):
    compare(family, "aot_eager", [9, 8, 7, 6, 5], counted)


def test_known_steps_of_any_length_are_one_graph(counted):
    policy = make(Pi05Policy, depth=1, max_action_prefix=4)
    batch = make_batch(policy.config)
    compare_stack(policy, "eager", [batch], draws_per_observation=1)
    graphs = counted()
    for lengths in ([0, 0, 0], [4, 1, 0], [5, 5, 2]):
        policy(**batch, action_prefix_lengths=torch.tensor(lengths)).loss.backward()
    assert counted() == graphs == graphs_of(joint=1)
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("family", [Pi0Policy, Pi05Policy])
def test_layers_compile_once_with_known_steps(family, counted):
    compare(family, "aot_eager", [9, 8, 7], counted, max_action_prefix=3)


@pytest.mark.slow
@pytest.mark.parametrize("family", [Pi0Policy, Pi05Policy])
def test_compiled_kernels_agree_with_eager_ones(family, counted):
    compare(family, "inductor", [9, 8, 7], counted)


def graphs_of(joint=1):
    """The vision tower's, and those of all that follows."""
    return 1 + joint


def gradients(policy, batch, **options):
    """Return the loss, and the gradient of every parameter that has one."""
    policy.zero_grad()
    loss = policy(**batch, **options).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}


def cut(batch, length):
    return {name: value[:, :length] if name in TEXT else value for name, value in batch.items()}


def compare_stack(policy, backend, batches, **options):
    """Hold loss and gradients of the compiled pass to those of the policy as it was."""
    expected = [
        gradients(policy, one, generator=torch.Generator().manual_seed(0), **options) for one in batches
    ]
    names = list(policy.state_dict())
    policy.compile_stack(backend)
    assert list(policy.state_dict()) == names
    for one, want in zip(batches, expected, strict=True):
        found = gradients(policy, one, generator=torch.Generator().manual_seed(0), **options)
        assert found.keys() == want.keys()
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def make(family, **overrides):
    torch.manual_seed(0)
    policy = family(family.config_class.tiny(**overrides))
    perturb(policy)
    return policy.train()


def test_the_whole_pass_is_two_graphs_over_ten_text_lengths(counted):
    policy = make(Pi0Policy, depth=1)
    whole = make_batch(policy.config, text_lengths=(13, 3, 12))
    compare_stack(policy, "eager", [cut(whole, length) for length in range(13, 3, -1)])
    assert counted() == graphs_of(joint=1)
    assert not counters["graph_break"]
    with torch.no_grad():
        policy(**whole)
    policy.eval()(**whole)
    assert counted() == graphs_of(joint=1)  # neither asked for a graph of its own
    assert copy.deepcopy(policy)._compiled_pass is None
    assert pickle.loads(pickle.dumps(policy))._compiled_pass is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", ["text", "checkpointing", "draws", "known steps", "adapter", "insulated", "frozen"]
)
@pytest.mark.parametrize("family", [Pi0Policy, Pi05Policy])
def test_the_whole_pass_compiles_whatever_is_trained(family, way, counted):
    longest = 3 if way == "known steps" else 0
    policy = make(family, knowledge_insulation=way == "insulated", max_action_prefix=longest)
    batch, options, joint = make_batch(policy.config), {}, 1
    if way == "checkpointing":
        policy.activation_checkpointing_enable()
    elif way == "adapter":
        add_adapter(policy, AdapterConfig(rank=2))
        perturb(policy)
    elif way == "frozen":
        policy.model.vision_tower.requires_grad_(False)
        policy.model.language_model.requires_grad_(False)
    elif way in ("draws", "known steps"):
        options["draws_per_observation"] = 3
        batch = {name: value for name, value in batch.items() if name not in ("noise", "tau")}
    if way in ("text", "insulated"):
        batch = with_response(batch)
    lengths = [9, 8, 7]
    if way == "frozen":
        lengths, joint = [9, 8, 4], 2  # the last without padding, hence without a mask
    compare_stack(policy, "aot_eager", [cut(batch, length) for length in lengths], **options)
    assert counted() == graphs_of(joint)
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("family", [Pi0Policy, Pi05Policy])
def test_compiled_kernels_of_the_whole_pass_agree(family, counted):
    policy = make(family)
    batch = with_response(make_batch(policy.config))
    compare_stack(policy, "inductor", [cut(batch, length) for length in (9, 8)])


@pytest.mark.slow
def test_kept_features_are_read_by_the_compiled_pass(counted):
    policy, batch = make(Pi0Policy), make_batch(Pi0Policy.config_class.tiny())
    policy.requires_grad_(False)
    policy.model.expert.requires_grad_(True)
    with torch.no_grad():
        seen = [batch.pop(name) for name in ("pixel_values", "pixel_mask", "input_ids", "attention_mask")]
        batch["prefix_keys_values"], batch["prefix_mask"] = pack_prefix(
            policy.model.encode_prefix(*seen).cache
        )
    batch["prefix_mask"] = right_padded(batch["prefix_mask"])
    compare_stack(policy, "eager", [batch])
    assert counted() == 1


def right_padded(mask):
    return torch.arange(mask.shape[1]) < mask.sum(dim=1, keepdim=True)


def test_a_policy_that_cannot_be_compiled_as_a_whole_says_so():
    with pytest.raises(ConfigError, match=r"BCPolicy cannot be compiled as a whole: train\.compile=layers"):
        BCPolicy(BCConfig.tiny()).compile_stack()
