"""Guidance and known steps, on velocities that can be written down."""

import math

import pytest
import torch

from vla.errors import ConfigError, ShapeError, VlaError
from vla.objectives.guidance import (
    SCHEDULES,
    ActionPrefix,
    Guidance,
    guided,
    held,
    pull_weight,
    sample_prefix_lengths,
    soft_mask,
    to_zero,
    token_times,
)
from vla.objectives.solvers import SOLVERS, euler, time_grid

NOISE = torch.linspace(-1, 1, 12).reshape(2, 3, 2)


def test_the_weight_of_the_pull_is_that_of_the_paper():
    made = [pull_weight(tau) for tau in (0.0, 0.2, 0.4, 0.6, 0.8)]
    assert made == pytest.approx([5.0, 4.25, 2.1667, 2.1667, 4.25], abs=1e-4)
    assert pull_weight(0.01, max_weight=10.0) == 10.0


def test_a_linear_flow_is_pulled_by_the_formula():
    matrix, target = torch.randn(2, 2), torch.randn(2, 3, 2)
    weights = torch.tensor([1.0, 0.5, 0.0])[:, None]
    tau, rest = 0.4, 0.6
    made = guided(lambda x, tau: x @ matrix.T, target, weights)(NOISE, tau)
    jacobian = torch.eye(2) + rest * matrix
    error = weights * (target - NOISE @ jacobian.T)
    torch.testing.assert_close(made, NOISE @ matrix.T + pull_weight(tau) * (error @ jacobian))
    assert not made.requires_grad


def test_a_guided_chunk_ends_nearer_to_its_target():
    target, weights = torch.ones(2, 3, 2), torch.tensor([1.0, 0.5, 0.0])[:, None]
    times = time_grid(10)
    free = euler(lambda x, tau: -x, NOISE, times)
    led = euler(guided(lambda x, tau: -x, target, weights), NOISE, times)
    near, freely = ((one - target).abs().mean(dim=(0, 2)) for one in (led, free))
    assert near[0] < near[1] < 0.7 * freely[1]
    torch.testing.assert_close(led[:, 2], free[:, 2])


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=list(SOLVERS))
def test_known_steps_stay(solver):
    prefix = ActionPrefix(torch.randn(2, 2, 2), torch.tensor([2, 1]))
    start, known = prefix.within(NOISE)
    assert known.tolist() == [[True, True, False], [True, False, False]]
    made = solver(held(lambda x, tau: x + tau, known), start, time_grid(3))
    assert torch.equal(made[known], torch.cat([prefix.actions[0], prefix.actions[1, :1]]))
    assert torch.equal(made[~known], solver(lambda x, tau: x + tau, NOISE, time_grid(3))[~known])


def test_times_of_known_steps():
    known = torch.tensor([[True, False]])
    assert token_times(known, 0.25).tolist() == [[1.0, 0.25]]
    assert token_times(known, 0.25).dtype == torch.float64


def test_absent_dimensions_end_at_zero():
    absent = torch.tensor([False, True])
    made = euler(to_zero(lambda x, tau: x, absent, NOISE), NOISE, time_grid(4))
    assert made[..., 1].abs().max() < 1e-6
    assert made[..., 0].abs().min() > 0


@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize("longest", [1, 4, 10])
def test_lengths_have_the_odds_that_are_asked_for(longest, decay):
    """Each count is within four standard deviations of what its odds say."""
    n = 100_000
    drawn = sample_prefix_lengths((n // 10, 10), longest, decay, generator=torch.Generator().manual_seed(0))
    assert (drawn.shape, drawn.dtype) == ((n // 10, 10), torch.int64)
    counts = torch.bincount(drawn.flatten())
    odds = [math.exp(-decay * length) for length in range(longest + 1)]
    assert len(counts) == len(odds)
    for count, share in zip(counts.tolist(), odds, strict=True):
        share /= sum(odds)
        assert abs(count - n * share) < 4 * math.sqrt(n * share * (1 - share))


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (Guidance(NOISE[:1], torch.ones(())), ShapeError, "guidance.target must have shape"),
        (Guidance(NOISE, torch.ones(2, 1)), ShapeError, r"guidance.weights must broadcast to \[2, 3, 2\]"),
        (Guidance(NOISE, torch.ones(4, 2, 3, 2)), ShapeError, r"got \[4, 2, 3, 2\]"),
        (Guidance(NOISE, torch.ones(3, 1), 0.0), ConfigError, "max_weight must be above 0, got 0.0"),
        (ActionPrefix(NOISE[..., :1]), ShapeError, "action_prefix.actions must have shape"),
        (ActionPrefix(NOISE, torch.ones(3)), ShapeError, "action_prefix.lengths must have shape"),
        (ActionPrefix(torch.zeros(2, 4, 2)), ConfigError, "has 4 steps, a chunk only 3"),
    ],
)
def test_what_does_not_fit(wrong, error, said):
    with pytest.raises(error, match=said):
        wrong.check(NOISE)
    Guidance(NOISE, torch.ones(3, 1)).check(NOISE)
    ActionPrefix(NOISE, torch.tensor([3, 0])).check(NOISE)


NAN = torch.full_like(NOISE, torch.nan)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Guidance(NOISE, torch.tensor(-1.0)), "weights must be finite and at least 0 .* got -1.0"),
        (Guidance(NOISE, torch.tensor(torch.nan)), "weights must be finite .* got nan"),
        (Guidance(NOISE, torch.tensor(torch.inf)), "weights must be finite .* got inf"),
        (Guidance(NOISE, torch.ones(()), float("inf")), "max_weight must be a finite number, got inf"),
        (Guidance(NOISE, torch.ones(()), "5"), "max_weight must be a finite number, got '5'"),
        (Guidance(NAN, torch.ones(())), "target must be finite where its weight is not 0, got nan"),
        (Guidance(NOISE, 0.5), "guidance.weights must be a tensor, got a float"),
        (Guidance(NOISE.numpy(), torch.ones(())), "guidance.target must be a tensor, got a ndarray"),
        (ActionPrefix(NOISE, torch.tensor([-1, 1])), "lengths must lie in 0 to 3, .* got -1"),
        (ActionPrefix(NOISE, torch.tensor([4, 1])), "lengths must lie in 0 to 3, .* got 4"),
        (ActionPrefix(NOISE, torch.tensor([True, True])), "lengths must be whole numbers .* torch.bool"),
        (ActionPrefix(NOISE, torch.tensor([1.0, 1.0])), "lengths must be whole numbers .* torch.float32"),
        (ActionPrefix(NOISE, [1, 1]), "lengths must be a tensor, got a list"),
        (ActionPrefix(NAN), "actions must be finite where they are known, got nan"),
        (ActionPrefix(NOISE.numpy()), "action_prefix.actions must be a tensor, got a ndarray"),
    ],
)
def test_numbers_that_cannot_be_followed(wrong, said):
    with pytest.raises(VlaError, match=said):
        wrong.check(NOISE)


def test_what_does_not_count_need_not_be_known():
    weights = torch.tensor([1.0, 1.0, 0.0])[:, None]
    target = torch.where(weights == 0, torch.nan, NOISE)
    Guidance(target, weights).check(NOISE)
    made = guided(lambda x, tau: x, target, weights)(NOISE, 0.4)
    assert torch.equal(made, guided(lambda x, tau: x, NOISE * weights, weights)(NOISE, 0.4))
    ActionPrefix(target, torch.tensor([2, 1])).check(NOISE)


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("linear", [1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0]),
        ("exp", [1, 1, 0.5706, 0.2871, 0.1145, 0.0258, 0, 0]),
        ("ones", [1, 1, 1, 1, 1, 1, 0, 0]),
        ("zeros", [1, 1, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_the_soft_mask_is_that_of_the_paper(schedule, want):
    assert soft_mask(8, 2, 6, schedule).tolist() == pytest.approx(want, abs=5e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_soft_masks_at_their_ends(schedule):
    assert soft_mask(4, 0, 0, schedule).tolist() == [0] * 4
    assert soft_mask(4, 4, 4, schedule).tolist() == [1] * 4
    assert soft_mask(4, 2, 1, schedule).tolist() == [1, 1, 0, 0]
    assert torch.equal(soft_mask(4, 1, 9, schedule), soft_mask(4, 1, 4, schedule))
    for horizon in range(1, 9):
        for delay in range(horizon + 1):
            for end in range(delay, horizon + 1):
                made = soft_mask(horizon, delay, end, schedule)
                assert (made[:delay] == 1).all()
                assert (made[end:] == 0).all()
                assert (made.diff() <= 0).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((4, 5, 6), "delay must lie in 0 to 4, the steps of a chunk, got 5"),
        ((4, -1, 3), "delay must be"),
        ((4, 1, 3, "cosine"), "schedule must be one of exp, linear, ones, zeros, got 'cosine'"),
    ],
)
def test_masks_that_cannot_be(wrong, said):
    with pytest.raises(ConfigError, match=said):
        soft_mask(*wrong)
