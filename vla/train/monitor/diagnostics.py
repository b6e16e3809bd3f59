"""What the steps that are logged say beyond their loss: where it comes from, and where the gradient goes.

    action_loss/dim_3          mean squared error of the velocity in the robot's fourth dimension
    action_loss/tau_0.4_0.6    the same of the draws whose time lies in that fifth of [0, 1]
    gradient_norm/expert       before clipping, of one part of the policy; their squares add up to the whole's
    memory_gb                  the most that this process has held, of 10^9 bytes

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

TAU_BUCKETS = 5
"""Equal parts of [0, 1], in which the flow's time runs from noise to data."""


class Diagnostics:
    """Collects the micro-batches of one step.

    Args:
        policy: Says which part a parameter belongs to (`parts`).
        accelerator: To add up over the processes.
    """

    def __init__(self, policy: Any, accelerator: Accelerator) -> None:
        self._parts = policy.parts
        self._accelerator = accelerator
        self._sums: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._values: dict[str, float] = {}

    def add(self, output: Any, batch: Mapping[str, torch.Tensor]) -> None:
        """Count a micro-batch, where the policy's output says what its action loss was computed from.

        Args:
            output: With `velocity` and `target` `[b, a, m]` or `[b, n, a, m]`, `tau` `[b]` or `[b, n]`, and
                `counts`, which broadcasts to the velocity, or None.
            batch: `action_dim_is_pad` `[b, m]` says which dimensions the robot lacks.
        """
        if getattr(output, "target", None) is not None:
            self._sums.append(_sum_losses(output, batch.get("action_dim_is_pad")))

    def finish(self, model: nn.Module) -> None:
        """Close the step: to be called by all processes, before the gradient is clipped."""
        self._values = {**self._losses(), **self._gradient_norms(model)}
        self._values["memory_gb"] = peak_memory(self._accelerator.device) / 1e9
        self._sums = []

    def take(self) -> dict[str, float]:
        """Return the values of the step that was closed last."""
        values, self._values = self._values, {}
        return values

    def _losses(self) -> dict[str, float]:
        if not self._sums:
            return {}
        dims, taus = (torch.stack(parts).sum(0) for parts in zip(*self._sums, strict=True))
        reduced: Any = self._accelerator.reduce(torch.cat([dims, taus], dim=1), "sum")
        (sums, counts), width = reduced.tolist(), dims.shape[1]
        names = [f"dim_{number}" for number in range(width)]
        names += [f"tau_{_edge(n)}_{_edge(n + 1)}" for n in range(TAU_BUCKETS)]
        return {
            f"action_loss/{name}": total / count
            for name, total, count in zip(names, sums, counts, strict=True)
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
def _sum_losses(output: Any, dim_is_pad: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared errors and how many they are, by dimension `[2, m]` and by bucket of tau `[2, k]`."""
    squared = (output.velocity.detach().float() - output.target.float()).square()
    weight = torch.ones_like(squared)
    if output.counts is not None:
        weight = weight * output.counts
    draws = (-1, *squared.shape[-2:])
    both = torch.stack([squared * weight, weight]).reshape(2, *draws)
    bucket = (output.tau.reshape(-1) * TAU_BUCKETS).long().clamp(0, TAU_BUCKETS - 1)
    taus = torch.zeros(2, TAU_BUCKETS, device=squared.device)
    taus.index_add_(1, bucket, both.sum((-2, -1)))
    if dim_is_pad is not None:
        per_sample = both.reshape(2, dim_is_pad.shape[0], -1, draws[-1])
        both = per_sample * ~dim_is_pad.bool()[:, None, :]
    return both.reshape(2, -1, draws[-1]).sum(1), taus


def _edge(number: int) -> str:
    return f"{number / TAU_BUCKETS:g}" if 0 < number < TAU_BUCKETS else f"{number // TAU_BUCKETS}.0"


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held: of the GPU where there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
