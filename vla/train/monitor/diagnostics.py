"""What the logged steps report beyond their loss: where it comes from, and where the gradient goes.

    action_loss/dim_3          mean squared error of the action loss in the robot's fourth dimension
    action_loss/tau_0.4_0.6    the same for the draws whose noise level lies in that fifth of [0, 1]; a policy
                               may call its noise level by another name than tau, or have none
    gradient_norm/expert       before clipping, of one part of the policy; their squares add up to the whole's
    memory_gb                  the most that this process has held, in 10^9 bytes

All of it is read off tensors that the step has anyway, in the one step that ends a report, so it costs
nothing in between and no random number. Means are over all micro-batches and processes of that step.
"""

import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from vla.policies.base import Policy, PolicyOutput
from vla.types import SampleIds

BUCKETS = 5
"""Equal parts of [0, 1], the range of the noise level."""


class Diagnostics:
    """Collects the micro-batches of one step.

    Args:
        policy: Its `parts` tell which one a parameter belongs to; its `noise_level_name` is used in metrics.
        accelerator: accelerate's view of the processes, whose values are added up.
    """

    def __init__(self, policy: Policy, accelerator: Accelerator) -> None:
        self._parts, self._level = policy.parts, policy.noise_level_name
        self._accelerator = accelerator
        self._dims: list[torch.Tensor] = []
        self._levels: list[torch.Tensor] = []
        self._values: dict[str, float] = {}

    def add(self, output: PolicyOutput, batch: Mapping[str, torch.Tensor]) -> None:
        """Count a micro-batch, where the policy's output has the errors behind its action loss.

        Args:
            output: Its `action_error`, `action_error_mask` and `noise_level` are read.
            batch: `action_dim_is_pad` `[b, m]`, if there, says which dimensions the robot lacks.
        """
        error, level = output.action_error, output.noise_level
        if error is None:
            return
        counted = _with_counts(error, output.action_error_mask)
        self._dims.append(_sum_by_dimension(counted, batch.get("action_dim_is_pad")))
        if level is not None:
            self._levels.append(_sum_by_level(counted, level))

    def finish(self, model: nn.Module) -> None:
        """Close the step: to be called by all processes, before the gradient is clipped."""
        self._values = {**self._losses(), **self._gradient_norms(model)}
        self._values["memory_gb"] = peak_memory(self._accelerator.device) / 1e9
        self._dims, self._levels = [], []

    def take(self) -> dict[str, float]:
        """Return the values of the step that was closed last."""
        values, self._values = self._values, {}
        return values

    def _losses(self) -> dict[str, float]:
        if not self._dims:
            return {}
        sums = [torch.stack(self._dims).sum(0)]
        names = [f"dim_{number}" for number in range(sums[0].shape[1])]
        if self._levels:
            sums.append(torch.stack(self._levels).sum(0))
            names += [f"{self._level}_{_edge(n)}_{_edge(n + 1)}" for n in range(BUCKETS)]
        reduced: Any = self._accelerator.reduce(torch.cat(sums, dim=1), "sum")
        return {
            f"action_loss/{name}": total / count
            for name, total, count in zip(names, *reduced.tolist(), strict=True)
            if count
        }

    def _gradient_norms(self, model: nn.Module) -> dict[str, float]:
        """Return the norm of each part's gradient; none where the engine keeps gradients to itself."""
        parts: dict[str, list[torch.Tensor]] = {}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                parts.setdefault(self._parts.measured(name), []).append(parameter.grad)
        norms = {part: get_total_norm(gradients) for part, gradients in parts.items()}
        whole = {part: n.full_tensor() if isinstance(n, DTensor) else n for part, n in norms.items()}
        return {f"gradient_norm/{part}": float(norm) for part, norm in whole.items()}


@torch.no_grad()
def _with_counts(error: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the squared errors that count, and how many each of them is (1 or 0), `[2, b, n, a, m]`."""
    weight = torch.ones_like(error)
    if mask is not None:
        weight = weight * mask
    return torch.stack([error * weight, weight])


@torch.no_grad()
def _sum_by_dimension(counted: torch.Tensor, dim_is_pad: torch.Tensor | None) -> torch.Tensor:
    """Return sum and count of the errors by action dimension, `[2, m]`."""
    if dim_is_pad is not None:
        counted = counted * ~dim_is_pad.bool()[:, None, None, :]
    return counted.flatten(1, 3).sum(1)


@torch.no_grad()
def _sum_by_level(counted: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Return sum and count of the errors by bucket of the noise level `[b, n]`, `[2, k]`."""
    bucket = (level.reshape(-1) * BUCKETS).long().clamp(0, BUCKETS - 1)
    sums = torch.zeros(2, BUCKETS, device=counted.device)
    return sums.index_add_(1, bucket, counted.sum((-2, -1)).flatten(1))


def _edge(number: int) -> str:
    return f"{number / BUCKETS:g}" if 0 < number < BUCKETS else f"{number // BUCKETS}.0"


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held: on the GPU where there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def name_frames(samples: list[SampleIds]) -> str:
    """Return `"episode 3 frames 5, 9; episode 7 frame 0"`."""
    frames: dict[int, list[int]] = {}
    for episode, frame in sorted(one for ids in samples for one in ids):
        frames.setdefault(episode, []).append(frame)
    return "; ".join(
        f"episode {episode} frame{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
        for episode, found in frames.items()
    )
