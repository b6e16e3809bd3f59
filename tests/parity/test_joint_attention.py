"""Prefix-then-suffix is the same function as joint attention: values and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity.joint_attention import joint_forward
from tests.parity.transformers_pi0 import make_batch, perturb
from vla.objectives.flow import straight_path
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy

FAMILY = [Pi0Policy, Pi05Policy]


def batch_with_response(config, seed=1, absent=((0, 1), (2, 2))):
    batch = make_batch(config, text_lengths=(9, 4, 6), seed=seed, absent=absent)
    types = torch.zeros_like(batch["input_ids"])
    types[0, 5:9] = types[1, 3:4] = types[2, 4:6] = 1
    batch["token_type_ids"] = types
    batch["labels"] = torch.where(types == 1, batch["input_ids"], -100)
    return batch


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("see_response", [True, False])
def test_values_and_gradients_agree(see_response, family):
    torch.manual_seed(0)
    policy = family(family.config_class.tiny(actions_see_response=see_response))
    perturb(policy)
    policy.eval()
    batch = batch_with_response(policy.config)
    out = policy(**batch)
    out.loss.backward()
    ours = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()

    point = straight_path(batch["actions"], batch["noise"], batch["tau"])
    velocity, hidden = joint_forward(policy.model, batch, point.x, batch["tau"], see_response)
    logits = hidden @ policy.model.language_model.embed_tokens.weight.T
    action_loss = (velocity - point.velocity).square().mean()
    text_loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    )
    (action_loss + text_loss).backward()

    torch.testing.assert_close(out.velocity, velocity, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.action_loss, action_loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.text_loss, text_loss, atol=1e-5, rtol=0)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(out.logits[real], logits[real], atol=1e-5, rtol=1e-5)
    theirs = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        scale = theirs[name].abs().max().clamp(min=1.0)
        assert (gradient - theirs[name]).abs().max() <= 2e-5 * scale, name


@settings(max_examples=10, deadline=None)
@given(
    heads=st.sampled_from([(2, 1), (4, 2), (4, 4)]), depth=st.integers(1, 3), horizon=st.integers(1, 5),
    family=st.sampled_from(FAMILY), seed=st.integers(0, 1000),
    row=st.integers(0, 2), camera=st.integers(0, 2),
)  # fmt: skip
def test_values_agree_for_any_sizes(heads, depth, horizon, family, seed, row, camera):
    torch.manual_seed(seed)
    sizes = {"num_heads": heads[0], "num_kv_heads": heads[1], "depth": depth, "action_horizon": horizon}
    config = family.config_class.tiny(**sizes)
    policy = family(config)
    perturb(policy)
    policy.eval()
    batch = make_batch(config, seed=seed, absent=((row, camera),))
    with torch.no_grad():
        out = policy(**batch)
        x = straight_path(batch["actions"], batch["noise"], batch["tau"]).x
        velocity, _ = joint_forward(policy.model, batch, x, batch["tau"], see_response=False)
    torch.testing.assert_close(out.velocity, velocity, atol=1e-5, rtol=1e-5)
