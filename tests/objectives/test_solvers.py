import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla.objectives.solvers import SOLVERS, time_grid


@pytest.mark.parametrize("name", SOLVERS)
@given(num_steps=st.integers(1, 20), seed=st.integers(0, 100))
def test_a_perfect_velocity_field_is_integrated_exactly(name, num_steps, seed):
    """The field of a single datum, v = (actions - x) / (1 - tau), leads to it in any number of steps."""
    g = torch.Generator().manual_seed(seed)
    actions, noise = (torch.randn(2, 4, 3, generator=g, dtype=torch.float64) for _ in range(2))

    def constant(x, tau):
        return actions - noise

    end = SOLVERS[name](constant, noise, time_grid(num_steps))
    torch.testing.assert_close(end, actions, atol=1e-12, rtol=0)

    def towards(x, tau):  # the marginal field; at tau = 1 itself it is 0 / 0, and its limit is the same
        return (actions - x) / (1 - tau) if tau < 1 else actions - noise

    end = SOLVERS[name](towards, noise, time_grid(num_steps))
    torch.testing.assert_close(end, actions, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_order_of_convergence(name, order):
    """On dx/dtau = x cos(tau) the error falls by 2^order when steps double."""

    def error(num_steps):
        x = SOLVERS[name](
            lambda x, tau: x * math.cos(tau), torch.ones(1, dtype=torch.float64), time_grid(num_steps)
        )
        return abs(x.item() - math.exp(math.sin(1.0)))

    measured = math.log2(error(40) / error(80))
    assert abs(measured - order) < 0.1


def test_evaluations_per_step():
    calls = dict.fromkeys(SOLVERS, 0)
    for name, solver in SOLVERS.items():

        def velocity(x, tau, name=name):
            calls[name] += 1
            return x

        solver(velocity, torch.ones(1), time_grid(10))
    assert calls == {"euler": 10, "midpoint": 20, "heun": 20}


def test_the_grid_ends_at_the_data():
    assert time_grid(10)[0] == 0.0
    assert time_grid(10)[-1] == 1.0
    with pytest.raises(ValueError, match="at least 1, got 0"):
        time_grid(0)
