"""Chunks that continue the one that is being executed, and the best of several chunks.

A robot sends the rest of its chunk in its own units. Here it becomes what the policy would have predicted
from the present observation: relative to the new state, normalised, as wide and long as the policy's chunks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vla_client.continuation import PICKS, Continuation

from vla.checkpoints.agreement import robot_widths
from vla.errors import ConfigError, ObservationError, did_you_mean
from vla.objectives.guidance import ActionPrefix, Guidance, soft_mask
from vla.objectives.noise import Generators, standard_normal
from vla.policies.base import Policy
from vla.policies.observation import Observation
from vla.transforms.base import Pipeline
from vla.types import Sample, Window

VARIANT_OF = {"guided": "guidance", "prefix": "action_prefix"}
"""Method of a continuation -> keyword of `sample_actions`."""

Pick = str | Callable[[np.ndarray, Observation], int]
"""How the best of several chunks is found; see `RobotPolicy.infer`."""


@dataclass(frozen=True)
class Known:
    """The rest of a chunk as the policy would have predicted it.

    Attributes:
        target: `[a, m]` in model space; zeros where `is_known` is False.
        is_known: bool `[a]`, the steps that the rest has.
        weights: `[a]`, how much guidance counts each; of a prefix, 1 for the steps that are given.
        variant: Keyword of `sample_actions`; None where nothing pulls: the chunk is sampled freely.
        max_weight: See `Guidance`.
    """

    target: torch.Tensor
    is_known: torch.Tensor
    weights: torch.Tensor
    variant: str | None
    max_weight: float


def max_prefix(policy: Policy) -> int:
    """Return how many known first steps a policy was trained with, at most; 0: none."""
    return int(getattr(policy.config, "max_action_prefix", 0))


def methods(policy: Policy) -> tuple[str, ...]:
    """Return the methods by which a policy continues a chunk, of `vla_client.continuation.METHODS`."""
    if getattr(policy.config, "action_objective", "flow") == "regression":
        return ()
    offered = [method for method, variant in VARIANT_OF.items() if variant in policy.offers]
    return tuple(method for method in offered if method != "prefix" or max_prefix(policy))


def check_continuing(continuing: Any, count: int) -> Sequence[Continuation | None]:
    """Return what each of `count` observations continues, checked.

    Raises:
        ConfigError: It is not a sequence of `Continuation` and None, one for each observation.
    """
    if continuing is None:
        return [None] * count
    if isinstance(continuing, Continuation) or not isinstance(continuing, Sequence):
        raise ConfigError(
            "continuing takes a Continuation or None for each observation, in a list, got a "
            f"{type(continuing).__name__}."
        )
    if len(continuing) != count:
        raise ConfigError(f"Got {len(continuing)} entries of continuing for {count} observations.")
    for one in continuing:
        if one is not None and not isinstance(one, Continuation):
            raise ConfigError(
                "continuing must be a vla_client.continuation.Continuation or None, got a "
                f"{type(one).__name__}."
            )
    return continuing


def known_of(
    continuing: Continuation | None, observed: Sample, pipeline: Pipeline, policy: Policy, window: Window
) -> Known | None:
    """Return the rest of a chunk in model space, where there is one.

    Args:
        continuing: The rest, in robot units, or None.
        observed: What is seen now, as it goes into the pipeline.
        pipeline: The robot's.
        policy: Whose chunk shall continue it.
        window: Which frames the policy predicts.

    Raises:
        ObservationError: The actions have another width, or nothing finite comes of them.
        ConfigError: The policy offers no such continuation, or not for so many steps.
    """
    if continuing is None:
        return None
    _check_method(continuing, policy, window)
    first, horizon = window.first_executable, window.executable
    actions = torch.from_numpy(np.array(continuing.actions[:horizon]))
    width = robot_widths(pipeline)[1]
    if width is not None and actions.shape[1] != width:
        raise ObservationError(
            f"continuing.actions must be [k, {width}] in robot units, got {list(continuing.actions.shape)}."
        )
    made = pipeline.forward_actions(observed | {"actions": actions})
    if not bool(made.isfinite().all()):
        step = int((~made.isfinite()).any(dim=1).nonzero()[0])
        raise ObservationError(
            f"continuing.actions at step {step}, {actions[step].tolist()}, is so far from what the policy "
            f"was trained on that nothing finite comes of it: {made[step].tolist()}."
        )
    known = first + torch.arange(len(made))
    target = made.new_zeros(window.horizon, made.shape[1])
    target[known] = made
    is_known = torch.zeros(window.horizon, dtype=torch.bool)
    is_known[known] = True
    weights = torch.zeros(window.horizon)
    schedule = "zeros" if continuing.method == "prefix" else continuing.schedule
    weights[first:] = soft_mask(horizon, continuing.delay, len(made), schedule)
    variant = VARIANT_OF[continuing.method] if bool(weights.any()) else None
    return Known(target, is_known, weights, variant, continuing.max_weight)


def _check_method(continuing: Continuation, policy: Policy, window: Window) -> None:
    """Raise `ConfigError` where the policy cannot continue a chunk so."""
    method, delay, name = continuing.method, continuing.delay, type(policy).__name__
    offered = methods(policy)
    if method not in offered:
        why = "it was not trained to continue known steps" if method == "prefix" else "it has no flow"
        instead = f"It offers {', '.join(offered)}." if offered else "Ask for chunks without continuing."
        raise ConfigError(f"{name} cannot continue a chunk by method='{method}': {why}. {instead}")
    if delay >= window.executable:
        raise ConfigError(
            f"continuing.delay must be below the {window.executable} steps that a chunk of this policy "
            f"executes, got {delay}: every step of the new chunk would be past when it arrives."
        )
    if method != "prefix":
        return
    if delay > max_prefix(policy):
        raise ConfigError(
            f"continuing.delay must be at most {max_prefix(policy)} by method='prefix', the longest prefix "
            f"that the policy was trained with, got {delay}."
        )
    if window.first_executable:
        raise ConfigError(
            f"A chunk of {name} begins {window.first_executable} steps before the present, which "
            "method='prefix' does not know: use method='guided'."
        )


def groups(known: Sequence[Known | None]) -> list[list[int]]:
    """Return the places of the rows that can be sampled together; those sampled freely come first."""
    found: dict[tuple[Any, ...], list[int]] = {(): []}  # sampled freely
    for place, one in enumerate(known):
        key: tuple[Any, ...] = ()
        if one is not None and one.variant is not None:
            key = (one.variant, one.max_weight if one.variant == "guidance" else None)
        found.setdefault(key, []).append(place)
    return [places for places in found.values() if places]


def variant_of(
    known: Sequence[Known | None], samples: int, device: torch.device
) -> dict[str, Guidance | ActionPrefix]:
    """Return the keyword of `sample_actions` by which the rows of one group continue their chunks.

    Args:
        known: What the rows continue, of one group.
        samples: Chunks of each row.
        device: The policy's.
    """
    rows = [one for one in known if one is not None and one.variant is not None]
    if not rows:
        return {}
    target, weights = (
        torch.stack([getattr(one, name) for one in rows]).repeat_interleave(samples, dim=0).to(device)
        for name in ("target", "weights")
    )
    if rows[0].variant == "guidance":
        return {"guidance": Guidance(target, weights[..., None], rows[0].max_weight)}
    lengths = (weights == 1).sum(dim=1)
    longest = max(int(one.weights.sum()) for one in rows)
    return {"action_prefix": ActionPrefix(target[:, :longest], lengths)}


def split_noise(
    parts: Sequence[Sequence[int]],
    known: Sequence[Known | None],
    noise: np.ndarray | None,
    generator: Generators | None,
    samples: int,
    horizon: int,
    device: torch.device,
) -> list[tuple[np.ndarray | None, Generators | None]]:
    """Return noise or generators for the rows of every group, as all rows together would have them.

    Args:
        parts: Places of the rows of each group.
        known: What each row continues.
        noise: `[b * n, a, m]`, or None.
        generator: One, or one for each row.
        samples: Chunks of each row, n.
        horizon: Steps of a chunk, `a`.
        device: The policy's.
    """
    if isinstance(generator, Sequence):
        return [
            (None if noise is None else _rows(noise, part, samples), _repeated(generator, part, samples))
            for part in parts
        ]
    if len(parts) > 1 and noise is None:  # one draw, as without the others: only what has a flow can continue
        width = next(one.target.shape[1] for one in known if one is not None)
        shape = (len(known) * samples, horizon, width)
        noise = standard_normal(shape, generator=generator, device=device).cpu().numpy()
    return [(noise if noise is None else _rows(noise, part, samples), generator) for part in parts]


def _rows(noise: np.ndarray, part: Sequence[int], samples: int) -> np.ndarray:
    return noise[[place * samples + one for place in part for one in range(samples)]]


def _repeated(
    generators: Sequence[torch.Generator], part: Sequence[int], samples: int
) -> list[torch.Generator]:
    return [generators[place] for place in part for _ in range(samples)]


def check_pick(pick: Any, continuing: Sequence[Continuation | None]) -> None:
    """Raise `ConfigError` unless `pick` is a rule that these observations allow."""
    if pick is None or callable(pick):
        return
    if pick not in PICKS:
        hint = did_you_mean(pick, PICKS) if isinstance(pick, str) else ""
        raise ConfigError(f"pick must be one of {', '.join(PICKS)} or a function, got {pick!r}.{hint}")
    for place, one in enumerate(continuing):
        if pick == "nearest" and (one is None or not len(one.actions)):
            with_place = f" (observation {place + 1} of {len(continuing)})" if len(continuing) > 1 else ""
            raise ConfigError(
                "pick='nearest' compares chunks with the rest of the one that is executed, and there is no "
                f"continuing, or it is empty{with_place}: give it, or pick='medoid'."
            )


def picked(
    pick: Pick | None,
    chunks: torch.Tensor,
    known: Known | None,
    actions: np.ndarray,
    observation: Observation,
) -> int:
    """Return the place of the best of several chunks.

    Args:
        pick: The rule; None: "nearest" where a chunk is continued, else "medoid".
        chunks: `[n, a, m]` in model space, on the host.
        known: What they continue.
        actions: `[n, a, d]`, their executable steps in robot units.
        observation: What they answer.

    Raises:
        ConfigError: A function returns something else than a place.
    """
    count = len(chunks)
    if callable(pick):
        place = pick(actions, observation)
        if isinstance(place, bool) or not isinstance(place, int | np.integer) or not 0 <= place < count:
            raise ConfigError(f"pick must return the place of a chunk, 0 to {count - 1}, got {place!r}.")
        return int(place)
    chunks = chunks.double()
    if known is not None and bool(known.is_known.any()) and pick != "medoid":
        return int((chunks - known.target)[:, known.is_known].flatten(1).norm(dim=1).argmin())
    executable = chunks[:, -actions.shape[1] :].flatten(1)
    return int((executable[:, None] - executable).norm(dim=2).sum(dim=1).argmin())
