"""The floating-point operations that a training batch needs, counted on the policy itself.

The policy's own forward and backward pass runs on a copy without values (`vla.policies.meta_run`), and
its products are added up: a multiplication and an addition as two, as the model needs them (PaLM, arXiv
2204.02311, appendix B): nothing twice where activations are recomputed or attention is fused, no gradient
of a frozen weight, none of an input that no trained weight precedes. Masked entries count, since they are
computed.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from vla.errors import VlaError
from vla.policies.base import Policy
from vla.policies.meta_run import MetaRun, without_values

MOST_SHAPES = 32
"""Batches of so many shapes are counted; those of further ones cost what the most similar one costs."""

_PROBLEMS = (RuntimeError, TypeError, ValueError, AttributeError, copy.Error)
"""What PyTorch raises where a pass asks for values that are not there, or where a module cannot be copied."""


class UncountedError(VlaError):
    """A policy's operations cannot be counted without values."""


class TrainingOperations:
    """Counts the forward and backward pass of a batch; once for batches of one shape.

    Nothing of the policy is touched: random numbers, gradients, hooks and compiled layers stay as they are.

    Args:
        policy: With its adapters, before an engine shards or wraps it.
    """

    def __init__(self, policy: Policy) -> None:
        self._name, self._run = type(policy).__name__, MetaRun()
        self._known: dict[tuple[Any, ...], dict[tuple[int, ...], int]] = {}
        shared = (policy.config, policy.pipelines, policy.adapter_pipelines, policy.tokenizer)
        try:
            # Products are as many in every dtype, and in one alone they need no autocast.
            self._twin = without_values(policy, (one for one in shared if one is not None)).float().train()
        except _PROBLEMS as error:
            self._twin, self._problem = None, self._said(error)
            return
        for module in self._twin.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False  # type: ignore[assignment]

    def __call__(self, batch: Mapping[str, torch.Tensor], policy: Policy) -> int:
        """Return the floating-point operations of a batch.

        Args:
            batch: `forward`'s tensors, best on the host: their values are read where `host_inputs` does.
            policy: The policy as it is now, whatever engine has it: which weights are trained may change.

        Raises:
            UncountedError: The policy's pass depends on values.
        """
        if self._twin is None:
            raise self._problem
        self._follow(policy)
        known = self._twin.host_inputs(dict(batch))
        kind, sizes = self._shape_of(batch, known)
        counted = self._known.setdefault(kind, {})
        if sizes not in counted:
            if counted and sum(map(len, self._known.values())) >= MOST_SHAPES:
                return counted[min(counted, key=lambda other: _distance(sizes, other))]
            counted[sizes] = self._count(batch, known)
        return counted[sizes]

    def _follow(self, policy: Policy) -> None:
        """Train of the copy what is trained of the policy, on as many draws."""
        assert self._twin is not None
        self._twin.training_draws = policy.training_draws
        copied, real = list(self._twin.parameters()), list(policy.parameters())
        if len(copied) != len(real):
            raise self._said(ValueError(f"it has {len(real)} parameters now, and had {len(copied)}"))
        for ours, theirs in zip(copied, real, strict=True):
            if ours.requires_grad != theirs.requires_grad:
                ours.requires_grad_(theirs.requires_grad)

    def _shape_of(
        self, batch: Mapping[str, torch.Tensor], known: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """Return what tells kinds of batches apart, and the numbers in which those of a kind differ."""
        assert self._twin is not None
        host = {name: getattr(value, "sizes", value) for name, value in known.items()}
        numbers = [*(batch[name].shape for name in sorted(batch))]
        numbers += [value for value in host.values() if isinstance(value, tuple)]
        others = tuple(value for value in host.values() if not isinstance(value, tuple))
        trained = tuple(parameter.requires_grad for parameter in self._twin.parameters())
        names = (*sorted(batch), *host)
        kind = (names, tuple(map(len, numbers)), others, self._twin.training_draws, hash(trained))
        return kind, tuple(int(number) for some in numbers for number in some)

    def _count(self, batch: Mapping[str, torch.Tensor], known: Mapping[str, Any]) -> int:
        assert self._twin is not None
        empty = {name: _empty(tensor) for name, tensor in batch.items()}
        before = self._run.flops
        try:
            with torch.random.fork_rng(devices=[]), torch.enable_grad(), self._run:
                self._twin(**empty, **known).loss.backward()
        except VlaError:
            raise
        except _PROBLEMS as error:
            raise self._said(error) from error
        finally:
            self._twin.zero_grad()
        return self._run.flops - before

    def _said(self, error: BaseException) -> UncountedError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return UncountedError(f"{self._name}'s pass depends on values, or it cannot be copied: {reason}")


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype, device="meta")


def _distance(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))
