"""Nothing is read back from the device: on the meta device a tensor has no values that could be read."""

import pytest
import torch

from tests.parity.transformers_pi0 import make_batch, perturb
from tests.policies.flow.test_policy import OBSERVATION, with_response
from vla.errors import ShapeError
from vla.policies.flow.cache import pack_prefix
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy

LAYOUTS = {
    "all alike": {"text_lengths": (5, 5, 5)},
    "unequal texts": {"text_lengths": (9, 4, 6)},
    "absent cameras": {"text_lengths": (9, 4, 6), "absent": ((0, 1), (2, 2), (2, 0))},
    "one camera absent everywhere": {"text_lengths": (5, 5, 5), "absent": ((0, 2), (1, 2), (2, 2))},
    "no camera": {"text_lengths": (5, 4, 5), "absent": tuple((r, c) for r in range(3) for c in range(3))},
}


@pytest.fixture(params=[Pi0Policy, Pi05Policy], scope="module")
def policy(request):
    torch.manual_seed(0)
    policy = request.param(request.param.config_class.tiny())
    perturb(policy)
    return policy.eval()


def on_meta(policy, batch: dict):
    """The policy and a batch without values, and what the host knew of the batch before."""
    known = policy.host_inputs(batch)
    assert known
    twin = type(policy)(policy.config).to("meta")
    return twin, {name: tensor.to("meta") for name, tensor in batch.items()} | known


@pytest.mark.parametrize("made", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("text", [False, True], ids=["prompt", "response"])
def test_training_reads_nothing_back(policy, made, text):
    batch = make_batch(policy.config, **made)
    batch = with_response(batch) if text and max(made["text_lengths"]) == 9 else batch
    twin, inputs = on_meta(policy, batch)
    twin.train()(**inputs).loss.backward()


@pytest.mark.parametrize("made", LAYOUTS.values(), ids=list(LAYOUTS))
def test_sampling_reads_nothing_back(policy, made):
    batch = make_batch(policy.config, **made)
    seen = {name: batch[name] for name in (*OBSERVATION, "noise")}
    twin, inputs = on_meta(policy, seen)
    assert twin.sample_actions(**inputs).shape == policy.sample_actions(**seen).shape


def test_a_stored_prefix_is_trained_on_without_reading_back(policy):
    batch = make_batch(policy.config)
    with torch.no_grad():
        packed = pack_prefix(policy.model.encode_prefix(*(batch[name] for name in OBSERVATION[:4])).cache)
    kept = dict(zip(("prefix_keys_values", "prefix_mask"), packed, strict=True))
    kept["prefix_mask"] = torch.arange(kept["prefix_mask"].shape[1]).expand(3, -1) < 7
    rest = {name: batch[name] for name in ("state", "actions", "noise", "tau")}
    twin, inputs = on_meta(policy, rest | kept)
    twin.train()(**inputs).loss.backward()


@pytest.mark.parametrize("made", LAYOUTS.values(), ids=list(LAYOUTS))
def test_what_the_host_knows_changes_no_bit(policy, made):
    batch = make_batch(policy.config, **made)
    batch = with_response(batch) if max(made["text_lengths"]) == 9 else batch

    def gradients(**known) -> list[torch.Tensor]:
        policy.zero_grad()
        policy(**batch, **known).loss.backward()
        return [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    ours, theirs = gradients(**policy.host_inputs(batch)), gradients()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_is_wrong_is_refused_on_the_host(policy):
    batch = make_batch(policy.config)
    batch["input_ids"][1, 0] = policy.config.vocab_size
    with pytest.raises(ShapeError, match="input_ids must lie in"):
        policy.host_inputs(batch)
    assert policy.host_inputs({"state": batch["state"]}) == {}
