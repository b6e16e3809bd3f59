"""Compiled layers compute what they did, and are compiled a few times only."""

import pytest
import torch
from torch._dynamo.utils import counters

from tests.parity.transformers_pi0 import make_batch, perturb
from tests.policies.flow.test_policy import with_response
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
        loss = policy(**cut).loss
        loss.backward()
        found.append(loss.item())
    return found


def compare(family, backend, lengths, counted):
    torch.manual_seed(0)
    policy = family(family.config_class.tiny())
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


@pytest.mark.slow
@pytest.mark.parametrize("family", [Pi0Policy, Pi05Policy])
def test_compiled_kernels_agree_with_eager_ones(family, counted):
    compare(family, "inductor", [9, 8, 7], counted)
