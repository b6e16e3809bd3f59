"""What changes a flow on its way, by wrapping its velocity: guidance towards a chunk, steps that are known.

Both let a new chunk continue one that is being executed (real-time chunking). Guidance pulls any flow policy
(arXiv 2506.07339, section 4); a clean prefix needs a policy that was trained with one (arXiv 2512.05964).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vla.errors import ConfigError, ShapeError
from vla.objectives.solvers import Velocity
from vla.types import as_count, as_number, check_shape

MAX_GUIDANCE = 5.0
"""Largest weight of the pull, which would grow without bound towards tau = 0."""

VARIANTS = frozenset({"guidance", "action_prefix"})
"""Keywords of `sample_actions` that ask for one of them."""

SCHEDULES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": lambda share: share * share.expm1() / math.expm1(1.0),
    "linear": lambda share: share,
    "ones": torch.ones_like,
    "zeros": torch.zeros_like,
}
"""How the pull towards the rest of a chunk fades behind the steps that will have been executed."""

TokenVelocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`velocity(x, tau)` with a time for each step of each chunk, `[b, a]`, in float64."""


@dataclass(frozen=True)
class Guidance:
    """A chunk that the new one is pulled towards.

    Attributes:
        target: `[b, a, m]`, in model space, such as what remains of the chunk that is being executed.
        weights: How much each entry counts, 0 (the target is not read there) to 1; broadcast to `target`:
            `[a, 1]` for weights of steps. More than 1 pulls more than the paper does, and soon overshoots.
        max_weight: Largest weight of the pull, above 0.
    """

    target: torch.Tensor
    weights: torch.Tensor
    max_weight: float = MAX_GUIDANCE

    def check(self, noise: torch.Tensor) -> None:
        """Raise unless it fits the noise `[b, a, m]` that sampling starts from.

        Values are looked at on a CPU alone: elsewhere the host would have to wait for them.

        Raises:
            ShapeError: The target has another shape, or the weights do not broadcast to it.
            ConfigError: `max_weight` is not above 0; or a weight is negative or not finite, or a target where
                it counts.
        """
        b, a, m = noise.shape
        _check_tensor(self.target, "guidance.target")
        _check_tensor(self.weights, "guidance.weights")
        check_shape(self.target, "b a m", "guidance.target", b=b, a=a, m=m)
        try:
            fits = torch.broadcast_shapes(self.weights.shape, noise.shape) == noise.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ShapeError(
                f"guidance.weights must broadcast to {list(noise.shape)}, got {list(self.weights.shape)}; "
                "weights of steps are [a, 1]."
            )
        if not as_number(self.max_weight, "guidance.max_weight") > 0:
            raise ConfigError(f"guidance.max_weight must be above 0, got {self.max_weight}.")
        if self.weights.device.type != "cpu" or self.target.device.type != "cpu":
            return
        if not bool((self.weights.isfinite() & (self.weights >= 0)).all()):
            raise ConfigError(
                "guidance.weights must be finite and at least 0 (sensible are 0 to 1), got "
                f"{_first(self.weights, ~(self.weights >= 0) | self.weights.isinf())}."
            )
        wrong = (self.weights != 0) & ~self.target.isfinite()
        if bool(wrong.any()):
            raise ConfigError(
                f"guidance.target must be finite where its weight is not 0, got {_first(self.target, wrong)} "
                "there: what is not known yet takes the weight 0."
            )


@dataclass(frozen=True)
class ActionPrefix:
    """First steps of the new chunks that are known, and stay as they are.

    Attributes:
        actions: `[b, d, m]`, in model space.
        lengths: long `[b]`, how many of the `d` steps of each row are known, 0 to d; None: all of them. What
            `actions` holds behind them is not read.
    """

    actions: torch.Tensor
    lengths: torch.Tensor | None = None

    def check(self, noise: torch.Tensor) -> None:
        """Raise unless it fits the noise `[b, a, m]` that sampling starts from.

        Values are looked at on a CPU alone: elsewhere the host would have to wait for them.

        Raises:
            ShapeError: The actions or lengths have other shapes.
            ConfigError: There are more known steps than a chunk has, or than `actions`; or a known one is not
                finite, or a length not a whole number.
        """
        b, a, m = noise.shape
        _check_tensor(self.actions, "action_prefix.actions")
        check_shape(self.actions, "b d m", "action_prefix.actions", b=b, m=m)
        if self.lengths is not None:
            _check_tensor(self.lengths, "action_prefix.lengths")
            check_shape(self.lengths, "b", "action_prefix.lengths", b=b)
            if self.lengths.dtype not in WHOLE:
                raise ConfigError(
                    f"action_prefix.lengths must be whole numbers (torch.long), got {self.lengths.dtype}."
                )
        if self.actions.shape[1] > a:
            raise ConfigError(
                f"action_prefix.actions has {self.actions.shape[1]} steps, a chunk only {a}: give the first "
                "steps alone."
            )
        if self.actions.device.type == "cpu":
            self._check_values(noise)

    def _check_values(self, noise: torch.Tensor) -> None:
        given = self.actions.shape[1]
        if self.lengths is not None and self.lengths.device.type == "cpu":
            outside = (self.lengths < 0) | (self.lengths > given)
            if bool(outside.any()):
                raise ConfigError(
                    f"action_prefix.lengths must lie in 0 to {given}, the steps that actions has, got "
                    f"{_first(self.lengths, outside)}."
                )
        known = self.within(noise)[1][:, :given, None]
        wrong = known & ~self.actions.isfinite()
        if bool(wrong.any()):
            raise ConfigError(
                "action_prefix.actions must be finite where they are known, got "
                f"{_first(self.actions, wrong)}."
            )

    def longest(self) -> int | None:
        """Return how many steps are known at most; None where lengths lie on a device, and are not read."""
        if self.lengths is None:
            return self.actions.shape[1]
        if self.lengths.device.type != "cpu":
            return None
        return int(self.lengths.max()) if self.lengths.numel() else 0

    def within(self, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the start of sampling with the known steps in place, and which those are, bool `[b, a]`."""
        given = self.actions.shape[1]
        steps = torch.arange(noise.shape[1], device=noise.device)
        lengths = given if self.lengths is None else self.lengths.clamp(max=given)[:, None]
        known = (steps < lengths).expand(len(noise), -1)
        padded = torch.zeros_like(noise)
        padded[:, :given] = self.actions.to(noise.dtype)
        return torch.where(known[..., None], padded, noise), known


def sample_prefix_lengths(
    shape: tuple[int, ...],
    longest: int,
    decay: float = 0.0,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Draw how many first steps of each chunk are known (arXiv 2512.05964), with odds `exp(-decay d)`.

    Args:
        shape: Shape of the result.
        longest: The largest length that is drawn; 0 is the smallest.
        decay: 0 draws all lengths equally often, more makes long ones rare.
        generator: Source of randomness.
        device: Where to draw; must be the generator's.

    Returns:
        long of the given shape, in [0, longest].
    """
    odds = torch.softmax(-decay * torch.arange(longest + 1, device=device, dtype=torch.float32), dim=0)
    edges = odds.cumsum(0)[:-1]  # without the last, which rounding may leave below 1
    return torch.searchsorted(edges, torch.rand(shape, generator=generator, device=device), right=True)


WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Dtypes of whole numbers."""


def _check_tensor(value: object, name: str) -> None:
    if not isinstance(value, torch.Tensor):
        raise ShapeError(f"{name} must be a tensor, got a {type(value).__name__}.")


def _first(tensor: torch.Tensor, where: torch.Tensor) -> float:
    """Return the first of the entries that are pointed out."""
    return tensor.expand(where.shape)[where][0].item()


def pull_weight(tau: float, max_weight: float = MAX_GUIDANCE) -> float:
    """Return how strongly a step at time tau pulls: `(1 - tau) / (tau r^2)`, bounded.

    `r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2)` is the spread of the data around what is expected of them at
    tau.
    """
    if tau <= 0.0 or tau >= 1.0:
        return max_weight
    return min(max_weight, (tau**2 + (1 - tau) ** 2) / (tau * (1 - tau)))


def soft_mask(horizon: int, delay: int, end: int, schedule: str = "exp") -> torch.Tensor:
    """Return how much each step of a new chunk is to follow the rest of the old one, float32 `[a]`.

    1 for the first `delay` steps, which will have been executed when the new chunk arrives; from there to
    `end` it falls as the schedule says; behind `end` there is nothing to follow: 0.

    With `c = (end - i) / (end - delay + 1)` at step i: "exp" is `c (e^c - 1) / (e - 1)`, "linear" is c,
    "ones" is 1, and "zeros" is 0.

    Args:
        horizon: Steps of a chunk, `a`.
        delay: 0 to `a`.
        end: How many steps the rest has, at least 0. A smaller one than `delay` counts as `delay`, a larger
            one than `a` as `a`.
        schedule: One of `SCHEDULES`.

    Raises:
        ConfigError: A number is out of its range, or there is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")
    horizon, end = as_count(horizon, "horizon"), as_count(end, "end", at_least=0)
    if not 0 <= as_count(delay, "delay", at_least=0) <= horizon:
        raise ConfigError(f"delay must lie in 0 to {horizon}, the steps of a chunk, got {delay}.")
    end = min(max(end, delay), horizon)
    steps = torch.arange(horizon, dtype=torch.float64)
    share = ((end - steps) / (end - delay + 1)).clamp(0.0, 1.0)
    falling = SCHEDULES[schedule](share)
    weights = torch.where(steps < delay, 1.0, torch.where(steps < end, falling, 0.0))
    return weights.float()


def guided(
    velocity: Velocity, target: torch.Tensor, weights: torch.Tensor, max_weight: float = MAX_GUIDANCE
) -> Velocity:
    """Return a velocity that also pulls the chunk that is expected at the end towards a target.

    At each step, `x + (1 - tau) v` is expected. Its weighted distance to the target goes back through the
    network, as a vector-Jacobian product with respect to `x`, and is added to `v`. No gradient reaches
    weights.

    Args:
        velocity: Differentiable in `x`.
        target: Shaped like `x`; not read where its weight is 0.
        weights: Broadcast to `x`.
        max_weight: See `pull_weight`.
    """
    target = torch.where(weights == 0, 0.0, target)

    def with_pull(x: torch.Tensor, tau: float) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            made = velocity(x, tau)
            expected = x + (1.0 - tau) * made
        error = weights * (target - expected.detach())
        (pull,) = torch.autograd.grad(expected, x, error)
        return made.detach() + pull_weight(tau, max_weight) * pull

    return with_pull


def token_times(known: torch.Tensor, tau: float) -> torch.Tensor:
    """Return the time of each step, float64 `[b, a]`: 1 (data) where it is known, else tau.

    Args:
        known: bool `[b, a]`.
        tau: The time of the others.
    """
    return torch.where(known, 1.0, torch.full(known.shape, tau, dtype=torch.float64, device=known.device))


def held(velocity: Velocity, known: torch.Tensor) -> Velocity:
    """Return a velocity that does not move known steps, bool `[b, a]`: no solver changes them."""
    return lambda x, tau: torch.where(known[..., None], 0.0, velocity(x, tau))


def to_zero(velocity: Velocity, absent: torch.Tensor, start: torch.Tensor) -> Velocity:
    """Return a velocity that takes absent dimensions straight from where they start to zero.

    Args:
        velocity: The flow's.
        absent: bool, broadcast to `[b, a, m]`.
        start: Noise `[b, a, m]`.
    """
    return lambda x, tau: torch.where(absent, -start, velocity(x, tau))


def check_variants(
    noise: torch.Tensor,
    guidance: Guidance | None,
    prefix: ActionPrefix | None,
    objective: str,
    longest: int,
) -> None:
    """Raise unless a chunk can be sampled so.

    Args:
        noise: Where sampling starts, `[b, a, m]`.
        guidance: Pulls the chunk.
        prefix: Its first steps, where they are known.
        objective: What the policy was trained for: "flow" or "regression".
        longest: Most known steps that it was trained with.

    Raises:
        ShapeError: A tensor has another shape.
        ConfigError: Both are given; or the policy has no flow to guide, or was trained with fewer known
            steps.
    """
    if guidance is None and prefix is None:
        return
    if guidance is not None and prefix is not None:
        raise ConfigError("Give guidance or action_prefix, not both: each of them continues a chunk.")
    if objective == "regression":
        raise ConfigError(
            "The policy was trained with action_objective='regression', whose chunk is one step: there is no "
            "flow to guide or to begin with known steps. Leave out guidance and action_prefix."
        )
    for one in (guidance, prefix):
        if one is not None:
            one.check(noise)
    known = None if prefix is None else prefix.longest()
    if known is not None and known > longest:
        trained = f"at most {longest}" if longest else "none (0)"
        raise ConfigError(
            f"action_prefix has {known} known steps, but the policy was trained with {trained}, as "
            "max_action_prefix in its config says: give no more, train with "
            f"policy.config.max_action_prefix={known}, or use guidance, which needs no such training."
        )


def begin(
    field: Velocity,
    of_tokens: TokenVelocity,
    start: torch.Tensor,
    absent: torch.Tensor | None,
    guidance: Guidance | None,
    prefix: ActionPrefix | None,
) -> tuple[Velocity, torch.Tensor]:
    """Return the velocity that a solver walks along, and where it begins.

    Args:
        field: The flow's velocity, one time for all.
        of_tokens: The same with a time for each step.
        start: Noise `[b, a, m]`.
        absent: bool `[b, 1, m]`, dimensions that the robot does not have.
        guidance: Pulls the chunk.
        prefix: Its first steps, where they are known.
    """
    velocity, known = field, None
    if prefix is not None:
        start, known = prefix.within(start)
        mask = known
        velocity = lambda x, tau: of_tokens(x, token_times(mask, tau))  # noqa: E731
    if absent is not None:
        velocity = to_zero(velocity, absent, start)
    if guidance is not None:
        velocity = guided(velocity, guidance.target.float(), guidance.weights.float(), guidance.max_weight)
        if absent is not None:  # what pulls the others must not move them
            velocity = to_zero(velocity, absent, start)
    return (velocity if known is None else held(velocity, known)), start
