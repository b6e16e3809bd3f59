"""Conditional flow matching on straight paths (Lipman et al., 2022), with pi-0's timestep distribution.

tau runs from 0 (noise) to 1 (data), as in the pi-0 paper (arXiv 2410.24164):

    A^tau = tau * actions + (1 - tau) * noise,   d A^tau / d tau = actions - noise.

Several draws for one chunk reduce the variance: times stratified, noise in antithetic pairs (both classical,
Owen, Monte Carlo theory, methods and examples, chapter 8). Each draw alone is distributed as before, so the
expected gradient is that of independent draws.
"""

from typing import NamedTuple

import torch


class PathPoint(NamedTuple):
    """A point on the path and the velocity there: `x` and `velocity`, both shaped like the actions."""

    x: torch.Tensor
    velocity: torch.Tensor


def straight_path(actions: torch.Tensor, noise: torch.Tensor, tau: torch.Tensor) -> PathPoint:
    """Return where the straight line from `noise` to `actions` is at `tau`, and its direction.

    Args:
        actions: `[..., a, m]`.
        noise: `[..., a, m]`, standard normal.
        tau: `[...]` in [0, 1]; or `[..., a]`, a time for each step.
    """
    weight = tau[..., None] if tau.ndim == actions.ndim - 1 else tau[..., None, None]
    weight = weight.to(actions.dtype)
    return PathPoint(weight * actions + (1 - weight) * noise, actions - noise)


def sample_tau(
    shape: tuple[int, ...],
    alpha: float = 1.5,
    scale: float = 0.999,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    stratified: bool = False,
) -> torch.Tensor:
    """Draw times from pi-0's shifted Beta distribution, which favours the noisy end.

    `p(tau) = Beta((s - tau) / s; alpha, 1)` on [0, s]. A Beta(alpha, 1) variable is `U^(1 / alpha)`.

    Args:
        shape: Shape of the result.
        alpha: First parameter of the Beta distribution; the second is 1.
        scale: `s`, the largest tau ever drawn; the last sliver before the data is never needed.
        generator: Source of randomness.
        device: Where to draw; must be the generator's.
        stratified: Draw along the last axis, of size n, once from each of n equally likely intervals,
            in random order.

    Returns:
        float32 of the given shape, in [0, s].
    """
    uniform = torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
    if stratified and shape[-1] > 1:
        part = torch.rand(shape, generator=generator, device=device).argsort(-1)
        uniform = (part + uniform) / shape[-1]
    return scale * (1 - uniform ** (1 / alpha))


def sample_noise(
    shape: tuple[int, int, int, int],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Draw standard normal noise; the second half of every chunk's draws is the negative of the first.

    Args:
        shape: `[b, n, a, m]`, n draws for each of b chunks; with an odd n, one draw is unpaired.
        generator: Source of randomness.
        device: Where to draw; must be the generator's.

    Returns:
        float32 `[b, n, a, m]`.
    """
    batch, draws, horizon, width = shape
    half = torch.randn(
        (batch, (draws + 1) // 2, horizon, width), generator=generator, device=device, dtype=torch.float32
    )
    return torch.cat([half, -half[:, : draws // 2]], dim=1)


def flow_loss(
    predicted: torch.Tensor, target: torch.Tensor, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error of the velocity over the entries that count; a float32 scalar.

    Args:
        predicted: `[..., a, m]`.
        target: `[..., a, m]`.
        counts: bool or weights, broadcastable to `[..., a, m]`; None counts everything.
    """
    squared = (predicted.float() - target.float()).square()
    if counts is None:
        return squared.mean()
    weight = counts.to(squared.dtype).expand_as(squared)
    return (squared * weight).sum() / weight.sum().clamp(min=1.0)
