"""The flow's time in the conventions of published weights.

This project's tau runs from 0 (noise) to 1 (data) and velocity is actions - noise. Published weights were
trained with t = 1 - tau and predict noise - actions. Implementations of the same formula round t differently,
and the time embedding multiplies t by up to `2 pi / min_period` = 1571 rad: the last float32 bit of a
frequency shows in the fourth decimal of the phase, and in the outputs (5e-5). `numerics` in a policy's config
names the implementation whose rounding to follow.
"""

from typing import Literal

import numpy as np
import torch

from vla.errors import ConfigError
from vla.nn.embeddings import Rounding, sinusoidal_embedding
from vla.objectives.solvers import time_grid

Numerics = Literal["openpi", "transformers", "float64"]
"""The JAX original, `transformers`' PI0, or the PyTorch ports of openpi and LeRobot."""

_ROUNDING: dict[str, Rounding] = {"openpi": "xla", "transformers": "linspace", "float64": "float64"}


def embed_time(
    tau: torch.Tensor, width: int, min_period: float, max_period: float, numerics: str
) -> torch.Tensor:
    """Embed tau `[...]` as float32 `[..., width]`, as in the weights' training."""
    return sinusoidal_embedding(1.0 - tau, width, min_period, max_period, rounding=_ROUNDING[numerics])


def sampling_times(num_steps: int, numerics: str) -> list[float]:
    """Return the `num_steps + 1` values of tau, 0 to 1, at which the solver stops.

    The original counts t down from 1 in float32: evenly spaced times differ from its outputs by 5e-5.
    """
    if num_steps < 1:
        raise ConfigError(f"num_steps must be at least 1, got {num_steps}.")
    if numerics == "transformers":
        return time_grid(num_steps)
    if numerics == "float64":  # every t is rounded to float32, but without adding up
        return [*(1.0 - float(np.float32(1.0 - step / num_steps)) for step in range(num_steps)), 1.0]
    t, step = np.float32(1.0), np.float32(-1.0 / num_steps)
    times = []
    for _ in range(num_steps):
        times.append(1.0 - float(t))
        t = np.float32(t + step)
    return [*times, 1.0]
