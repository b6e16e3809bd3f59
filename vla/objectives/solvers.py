"""ODE solvers of a velocity field, which is all that they know.

Anything that changes the flow (guidance, a clamped prefix) wraps the velocity, not the solver.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

Velocity = Callable[[torch.Tensor, float], torch.Tensor]
"""`velocity(x, tau)`: the direction at `x`, shaped like `x`."""

Solver = Callable[[Velocity, torch.Tensor, Sequence[float]], torch.Tensor]
"""`solver(velocity, x, times)`: walks `x` through the times and returns where it ends."""


def time_grid(num_steps: int) -> list[float]:
    """Return `num_steps + 1` evenly spaced times from 0 (noise) to 1 (data)."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    return [step / num_steps for step in range(num_steps + 1)]


def euler(velocity: Velocity, x: torch.Tensor, times: Sequence[float]) -> torch.Tensor:
    """First order: one evaluation per step, at the step's start."""
    for now, then in pairwise(times):
        x = x + (then - now) * velocity(x, now)
    return x


def midpoint(velocity: Velocity, x: torch.Tensor, times: Sequence[float]) -> torch.Tensor:
    """Second order: two evaluations per step; the one at the step's middle counts."""
    for now, then in pairwise(times):
        half = (then - now) / 2
        x = x + (then - now) * velocity(x + half * velocity(x, now), now + half)
    return x


def heun(velocity: Velocity, x: torch.Tensor, times: Sequence[float]) -> torch.Tensor:
    """Second order: the mean of the velocities at the step's start and at its Euler end."""
    for now, then in pairwise(times):
        first = velocity(x, now)
        second = velocity(x + (then - now) * first, then)
        x = x + (then - now) * (first + second) / 2
    return x


SOLVERS: dict[str, Solver] = {"euler": euler, "midpoint": midpoint, "heun": heun}
"""Solvers by the name that a config may give."""
