import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla.objectives.flow import flow_loss, sample_tau, straight_path


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
    assert distance < 1.95 / math.sqrt(n), "p < 0.001 that this is the documented law"
    assert abs((1 - tau).mean() - 0.6004) < 3e-3, "E[t] of the published law"


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
