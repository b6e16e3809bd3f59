"""Guided chunks, and chunks whose first steps are known: every level is held to naive steps."""

import logging
from itertools import pairwise

import pytest
import torch

from tests.parity.transformers_pi0 import make_batch, perturb
from tests.policies.flow.test_policy import OBSERVATION
from vla.errors import ConfigError, ShapeError
from vla.objectives.guidance import ActionPrefix, Guidance, pull_weight
from vla.policies.flow.time import sampling_times
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy

STEPS = 5
GENTLE = 0.1
"""A pull that keeps chunks near 1: at the usual weight an untrained network's Jacobian takes them beyond 100,
and float32 itself (against float64) to errors of 1e-4."""
WEIGHTS = torch.tensor([1.0, 1.0, 0.6, 0.2, 0.0, 0.0])[:, None]


@pytest.fixture(params=[Pi0Policy, Pi05Policy], scope="module")
def policy(request):
    torch.manual_seed(0)
    made = request.param(request.param.config_class.tiny(action_horizon=6, max_action_prefix=4))
    perturb(made, scale=0.05)
    return made.eval()


@pytest.fixture(scope="module")
def seen(policy) -> dict:
    batch = make_batch(policy.config)
    return {name: batch[name] for name in (*OBSERVATION, "noise")} | {"num_steps": STEPS}


@pytest.fixture(params=["plain", "graph", "graph without folding"], scope="module")
def sampler(policy, request):
    if request.param == "plain":
        return policy
    return policy.fast("graph", fold=request.param == "graph")


def target_of(seen: dict) -> torch.Tensor:
    return torch.randn(seen["noise"].shape, generator=torch.Generator().manual_seed(5))


def naive_guided(policy, seen: dict, target: torch.Tensor, absent=None, most=GENTLE) -> torch.Tensor:
    """Euler steps with `torch.autograd.functional.vjp` of what is expected at the end."""
    cache = policy.encode_prefix(**{name: seen[name] for name in OBSERVATION})
    x = start = seen["noise"]
    for tau, then in pairwise(sampling_times(seen["num_steps"], policy.config.numerics)):

        def velocity(x, tau=tau):
            made = policy.velocity(x, torch.full((3,), tau, dtype=torch.float64), cache)
            return made if absent is None else torch.where(absent, -start, made)

        made = velocity(x)
        error = WEIGHTS * (target - (x + (1 - tau) * made))
        expected = lambda x, velocity=velocity, tau=tau: x + (1 - tau) * velocity(x)  # noqa: E731
        _, pull = torch.autograd.functional.vjp(expected, x, error)
        pull = pull if absent is None else torch.where(absent, 0.0, pull)
        x = x + (then - tau) * (made + pull_weight(tau, most) * pull)
    return x.detach()


def test_a_guided_step_is_the_naive_one(policy, sampler, seen):
    target, one = target_of(seen), seen | {"num_steps": 1}
    want = naive_guided(policy, one, target, most=5.0)
    made = sampler.sample_actions(**one, guidance=Guidance(target, WEIGHTS))
    assert (made - want).abs().max() < 1e-5 * want.abs().max()
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_a_guided_chunk_is_the_naive_one(policy, sampler, seen):
    target = target_of(seen)
    want = naive_guided(policy, seen, target)
    made = sampler.sample_actions(**seen, guidance=Guidance(target, WEIGHTS, GENTLE))
    torch.testing.assert_close(made, want, atol=1e-6 if sampler is policy else 1e-5, rtol=0)
    assert (made - policy.sample_actions(**seen)).abs().max() > 0.05
    if sampler is not policy:
        assert (sampler.last_level, sampler.offers) == ("graph", {"guidance", "action_prefix"})


def test_guidance_does_not_move_absent_dimensions(policy, sampler, seen):
    absent = torch.zeros(policy.config.max_action_dim, dtype=torch.bool)
    absent[-2:] = True
    target = torch.where(absent, 0.0, target_of(seen))
    want = naive_guided(policy, seen, target, absent)
    made = sampler.sample_actions(
        **seen, guidance=Guidance(target, WEIGHTS, GENTLE), action_dim_is_pad=absent
    )
    torch.testing.assert_close(made, want, atol=1e-5, rtol=0)
    assert made[..., -2:].abs().max() < 1e-6


def test_another_target_is_read_by_the_same_program(policy, seen):
    fast, weightless = policy.fast("graph"), torch.zeros(1)
    for target, weights in (
        (target_of(seen), WEIGHTS),
        (-target_of(seen), WEIGHTS),
        (seen["noise"], weightless),
    ):
        made = fast.sample_actions(**seen, guidance=Guidance(target, weights, GENTLE))
        want = policy.sample_actions(**seen, guidance=Guidance(target, weights, GENTLE))
        torch.testing.assert_close(made, want, atol=1e-5, rtol=0)
    torch.testing.assert_close(made, policy.sample_actions(**seen), atol=1e-5, rtol=0)
    assert fast.counts.built == {"graph": 1}


def test_time_by_step_is_the_usual_time_where_all_are_equal(policy, seen):
    with torch.no_grad():
        cache = policy.encode_prefix(**{name: seen[name] for name in OBSERVATION})
        tau = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
        usual = policy.velocity(seen["noise"], tau, cache)
        by_step = policy.velocity(seen["noise"], tau[:, None].expand(-1, 6), cache)
        torch.testing.assert_close(by_step, usual, atol=1e-6, rtol=0)
        mixed = torch.cat([torch.ones(3, 2, dtype=torch.float64), tau[:, None].expand(-1, 4)], dim=1)
        assert (policy.velocity(seen["noise"], mixed, cache) - usual)[0].abs().max() > 1e-3
        with pytest.raises(ShapeError, match="tau must have shape"):
            policy.velocity(seen["noise"], mixed[:, :5], cache)


def test_nothing_known_is_the_usual_chunk(policy, sampler, seen):
    usual = policy.sample_actions(**seen)
    for prefix in (
        ActionPrefix(target_of(seen)[:, :0]),
        ActionPrefix(target_of(seen), torch.zeros(3, dtype=torch.long)),
    ):
        made = sampler.sample_actions(**seen, action_prefix=prefix)
        torch.testing.assert_close(made, usual, atol=1e-5, rtol=0)


def test_known_steps_come_back_and_the_others_read_them_as_data(policy, sampler, seen):
    given, lengths = target_of(seen)[:, :4], torch.tensor([4, 0, 2])
    made = sampler.sample_actions(**seen, action_prefix=ActionPrefix(given, lengths))
    assert torch.equal(made[0, :4], given[0])
    assert torch.equal(made[2, :2], given[2, :2])

    cache = policy.encode_prefix(**{name: seen[name] for name in OBSERVATION})
    known = torch.arange(6) < lengths[:, None]
    padded = torch.cat([given, torch.zeros(3, 2, given.shape[2])], dim=1)
    x = seen["noise"]
    with torch.no_grad():
        for now, then in pairwise(sampling_times(STEPS, policy.config.numerics)):
            x = torch.where(known[..., None], padded, x)  # put back before every step
            tau = torch.where(known, 1.0, torch.full(known.shape, now, dtype=torch.float64))
            x = x + (then - now) * policy.velocity(x, tau, cache)
    rest = ~known
    torch.testing.assert_close(made[rest], x[rest], atol=1e-5, rtol=0)
    assert (made - policy.sample_actions(**seen))[rest].abs().max() > 1e-3


def test_several_samples_share_one_prefix(policy, sampler, seen):
    noise = torch.randn(6, *seen["noise"].shape[1:])
    repeated = {
        name: one.repeat_interleave(2, dim=0) if name in OBSERVATION else one for name, one in seen.items()
    }
    prefix = ActionPrefix(torch.randn(6, 2, noise.shape[2]))
    want = policy.sample_actions(**repeated | {"noise": noise}, action_prefix=prefix)
    made = sampler.sample_actions(**seen | {"noise": noise}, samples=2, action_prefix=prefix)
    torch.testing.assert_close(made, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "level"), [("guidance", "graph"), ("action_prefix", "compiled")])
def test_a_level_that_does_not_offer_it_leaves_it_to_one_below(policy, seen, caplog, name, level):
    torch._dynamo.reset()
    fast = policy.fast("compiled", backend="eager")
    given = {
        "guidance": Guidance(target_of(seen), WEIGHTS, GENTLE),
        "action_prefix": ActionPrefix(target_of(seen)[:, :2]),
    }
    with caplog.at_level(logging.INFO):
        made = fast.sample_actions(**seen, **{name: given[name]})
    torch.testing.assert_close(made, policy.sample_actions(**seen, **{name: given[name]}), atol=1e-5, rtol=0)
    assert (fast.last_level, fast.level) == (level, "compiled")
    assert ("does not offer guidance, which is sampled at 'graph'" in caplog.text) == (level == "graph")
    torch._dynamo.reset()


def test_both_at_once_and_a_policy_without_a_flow_are_refused(policy, sampler, seen):
    both = {"guidance": Guidance(target_of(seen), WEIGHTS), "action_prefix": ActionPrefix(target_of(seen))}
    with pytest.raises(ConfigError, match="guidance or action_prefix, not both"):
        sampler.sample_actions(**seen, **both)
    with pytest.raises(ShapeError, match=r"guidance.target must have shape"):
        sampler.sample_actions(**seen, guidance=Guidance(target_of(seen)[:1], WEIGHTS))
    regression = type(policy)(type(policy).config_class.tiny(action_horizon=6, action_objective="regression"))
    with pytest.raises(ConfigError, match="there is no flow to guide"):
        regression.sample_actions(**seen, guidance=both["guidance"])
