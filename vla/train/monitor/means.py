"""Means of metrics over micro-batches, processes and steps.

A policy may report a metric for some batches only (an accuracy where there is text, for example). Every mean
here is over those micro-batches, processes or steps that have the metric.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from vla.policies.base import PolicyOutput


def mean_by_name(values: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean of each scalar over the mappings that hold it; names in the order of appearance."""
    names = _in_order(name for one in values for name in one)
    return {name: torch.stack([one[name] for one in values if name in one]).mean() for name in names}


class ProcessMeans:
    """Means over the processes, in one reduction per step.

    The processes first agree on a list of names, and agree anew when one of them has a name that is not on
    it, which the reduction itself tells all of them.

    Args:
        accelerator: accelerate's view of the processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._names: list[str] | None = None

    def __call__(self, values: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Return the means of all names of any process; to be called by all of them together."""
        if self._accelerator.num_processes == 1:
            stacked = torch.stack([value.detach().float() for value in values.values()])
            return dict(zip(values, stacked.tolist(), strict=True))
        reduced = None
        while reduced is None:
            if self._names is None:
                self._names = _in_order(gather_object(list(values)))
            reduced = self._reduce(values, self._names)
        return reduced

    def _reduce(self, values: Mapping[str, torch.Tensor], names: list[str]) -> dict[str, float] | None:
        """Return the means; None where a process has a name that is not listed."""
        device, size = self._accelerator.device, len(names)
        sums = torch.zeros(size, device=device)
        for place, name in enumerate(names):
            if name in values:
                sums[place] = values[name].detach().float()
        counts = [float(name in values) for name in names]
        unlisted = float(not set(values) <= set(names))
        packed = torch.cat([sums, torch.tensor([*counts, unlisted], device=device)])
        total: Any = self._accelerator.reduce(packed, "sum")
        if total[-1] > 0:
            self._names = None
            return None
        means = (total[:size] / total[size:-1]).tolist()
        held = total[size:-1].tolist()
        return {name: mean for name, mean, count in zip(names, means, held, strict=True) if count}


class RunningMeans:
    """Means since the last report. Their sums are saved with a checkpoint, so a resumed run reports alike."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Count one step's values."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means and start anew."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from another object's sums."""
        self._sums = dict(state["sums"])
        # Checkpoints of earlier versions hold one count for all names.
        older = {name: state.get("count", 0) for name in self._sums}
        self._counts = dict(state.get("counts", older))


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def scalars_of(output: PolicyOutput) -> dict[str, torch.Tensor]:
    """Return the loss and the policy's metrics, by the names that the policy gives them."""
    assert output.loss is not None
    return {name: value.detach() for name, value in {"loss": output.loss, **output.metrics}.items()}
