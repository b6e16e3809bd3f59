import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla.objectives.flow import flow_loss, sample_noise, sample_tau, straight_path


@given(tau=st.floats(0, 1), seed=st.integers(0, 1000))
def test_path_runs_straight_from_noise_to_actions(tau, seed):
    g = torch.Generator().manual_seed(seed)
    actions, noise = torch.randn(2, 4, 3, generator=g), torch.randn(2, 4, 3, generator=g)
    point = straight_path(actions, noise, torch.full((2,), tau))
    # From anywhere on the path, what is left of tau along the velocity leads to the actions.
    torch.testing.assert_close(point.x + (1 - tau) * point.velocity, actions, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(point.x - tau * point.velocity, noise, atol=1e-5, rtol=1e-5)


def test_path_broadcasts_over_draws():
    actions, noise = torch.randn(2, 1, 4, 3).expand(2, 5, 4, 3), torch.randn(2, 5, 4, 3)
    assert straight_path(actions, noise, torch.rand(2, 5)).x.shape == (2, 5, 4, 3)


def test_a_time_for_each_step():
    g = torch.Generator().manual_seed(0)
    actions, noise, tau = (torch.rand(2, 5, 4, *width, generator=g) for width in ((3,), (3,), ()))
    tau[..., 0] = 1.0
    point = straight_path(actions, noise, tau)
    assert torch.equal(point.x[:, :, 0], actions[:, :, 0])
    for step in range(4):
        alone = straight_path(actions[:, :, step : step + 1], noise[:, :, step : step + 1], tau[..., step])
        assert torch.equal(point.x[:, :, step : step + 1], alone.x)


def test_velocity_is_the_derivative_of_the_path():
    actions, noise = torch.randn(1, 2, 2, dtype=torch.float64), torch.randn(1, 2, 2, dtype=torch.float64)

    def x(tau):
        return straight_path(actions, noise, tau).x

    _, derivative = torch.func.jvp(x, (torch.tensor([0.3]).double(),), (torch.tensor([1.0]).double(),))
    torch.testing.assert_close(derivative, straight_path(actions, noise, torch.tensor([0.3])).velocity)


def test_tau_follows_its_density():
    """Kolmogorov-Smirnov against the integral of p(tau) = (1.5 / s) sqrt((s - tau) / s) on [0, s]."""
    n, s = 200_000, 0.999
    tau = sample_tau((n,), generator=torch.Generator().manual_seed(0)).double().sort().values
    assert tau[0] >= 0
    assert tau[-1] <= s
    cdf = 1 - ((s - tau) / s) ** 1.5
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    distance = torch.maximum((steps - cdf).abs(), (cdf - steps + 1 / n).abs()).max()
    assert distance < 1.95 / math.sqrt(n), "p < 0.001 that this is the documented distribution"
    assert abs((1 - tau).mean() - 0.6004) < 3e-3, "E[t] of the published distribution"


@pytest.mark.parametrize("alpha", [1.0, 1.5, 3.0])
def test_tau_law_equals_torchs_beta(alpha):
    n = 100_000
    ours = sample_tau((n,), alpha, 0.9, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    theirs = 0.9 * (1 - torch.distributions.Beta(alpha, 1.0).sample((n,)))
    quantiles = torch.linspace(0.01, 0.99, 25)
    torch.testing.assert_close(ours.quantile(quantiles), theirs.quantile(quantiles), atol=0.01, rtol=0)


def test_same_generator_same_times():
    one, two = (sample_tau((4,), generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two)


@given(draws=st.integers(2, 9), seed=st.integers(0, 1000))
def test_stratified_times_lie_one_in_each_part_of_the_distribution(draws, seed):
    tau = sample_tau((5, draws), 1.5, 0.999, generator=torch.Generator().manual_seed(seed), stratified=True)
    # The inverse of the distribution function says which of the equally likely parts a time lies in.
    share = ((0.999 - tau.double()) / 0.999) ** 1.5
    part = (share * draws - 1e-5).floor().sort().values
    assert torch.equal(part, torch.arange(draws).double().expand(5, -1))


def test_every_one_of_stratified_times_follows_the_distribution():
    generator = torch.Generator().manual_seed(0)
    tau = sample_tau((50_000, 4), generator=generator, stratified=True)
    alone = sample_tau((50_000,), generator=generator)
    quantiles = torch.linspace(0.01, 0.99, 25)
    for place in range(4):
        torch.testing.assert_close(
            tau[:, place].quantile(quantiles), alone.quantile(quantiles), atol=0.012, rtol=0
        )


def test_one_time_alone_is_the_same_number_stratified_or_not():
    one, two = (
        sample_tau((4, 1), generator=torch.Generator().manual_seed(7), stratified=stratified)
        for stratified in (False, True)
    )
    assert torch.equal(one, two)


@given(draws=st.integers(1, 9), seed=st.integers(0, 1000))
def test_noise_comes_in_opposite_pairs(draws, seed):
    noise = sample_noise((3, draws, 4, 2), generator=torch.Generator().manual_seed(seed))
    pairs, alone = draws // 2, draws % 2
    assert noise.shape == (3, draws, 4, 2)
    assert torch.equal(noise[:, pairs + alone :], -noise[:, :pairs])
    assert len(noise.abs().flatten(2)[0].unique(dim=0)) == pairs + alone, "different ones otherwise"


def test_every_draw_of_noise_is_standard_normal():
    noise = sample_noise((50_000, 4, 1, 1), generator=torch.Generator().manual_seed(0))
    levels = torch.linspace(0.01, 0.99, 25)
    want = torch.distributions.Normal(0.0, 1.0).icdf(levels)
    for place in range(4):
        torch.testing.assert_close(noise[:, place].flatten().quantile(levels), want, atol=0.04, rtol=0)


def spread_and_independent(draws, repeats=20_000):
    """Means over draws of a cubic of the point on the path, for draws that are spread and that are not."""
    generator = torch.Generator().manual_seed(0)
    action = torch.full((1, 1, 1, 1), 0.7)

    def mean(noise, tau):
        x = straight_path(action.expand_as(noise), noise, tau).x
        return (x + 0.5 * x**2 + 0.1 * x**3).mean((1, 2, 3))

    shape = (repeats, draws, 1, 1)
    spread = mean(
        sample_noise(shape, generator=generator),
        sample_tau(shape[:2], generator=generator, stratified=True),
    )
    return spread, mean(torch.randn(shape, generator=generator), sample_tau(shape[:2], generator=generator))


@pytest.mark.parametrize("draws", [2, 4, 5])
def test_spread_draws_estimate_the_same_with_less_variance(draws):
    spread, independent = spread_and_independent(draws)
    error = ((spread.var() + independent.var()) / len(spread)).sqrt()
    assert (spread.mean() - independent.mean()).abs() < 4 * error
    assert spread.var() < 0.7 * independent.var()


def test_loss_counts_only_what_it_is_told_to():
    predicted, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    counts = torch.rand(2, 3, 4) > 0.4
    want = sum((p - t) ** 2 for p, t in zip(predicted[counts], target[counts], strict=True)) / counts.sum()
    torch.testing.assert_close(flow_loss(predicted, target, counts), want)
    torch.testing.assert_close(flow_loss(predicted, target), (predicted - target).square().mean())


def test_loss_of_nothing_is_zero_and_not_nan():
    x = torch.randn(2, 3, 4, requires_grad=True)
    loss = flow_loss(x, torch.zeros_like(x), torch.zeros(2, 3, 4, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert torch.equal(x.grad, torch.zeros_like(x))
