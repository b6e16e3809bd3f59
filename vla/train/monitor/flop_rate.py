"""How much of what the devices could do went into the model.

    tflops    10^12 floating-point operations per second, of all processes together
    mfu       the same over what the devices could do at most (model FLOPs utilisation, PaLM, arXiv
              2204.02311, appendix B); left out where that is not known

The operations are those that the model needs for the batches, counted on a copy of the policy without values
(`operations.py`). Where its pass depends on values, PyTorch counts what the first micro-batch of each shape
runs, forward and backward, and one line says so. Layers that are computed twice (activation checkpointing)
then count twice, and products that it cannot see (those of 4-bit and 8-bit layers) not at all; compiled
layers hide all of theirs, so that nothing is reported. Time is wall-clock between two reports, validation and
saving included, as for `samples_per_second`.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from vla.nn.flop_counter import TrainingFlopCounter
from vla.policies.base import Policy
from vla.train.monitor.operations import TrainingOperations, UncountedError
from vla.train.recipe import TrainSection

logger = logging.getLogger(__name__)


class Peak(NamedTuple):
    """Dense products of one device at most, 10^12 operations per second."""

    bf16: float
    tf32: float
    fp32: float


_PEAKS = {
    r"NVIDIA A100[- ].*": Peak(312, 156, 19.5),
    r"NVIDIA H100 80GB HBM3|NVIDIA GH200 .*|NVIDIA H200": Peak(989, 494, 67),
    r"NVIDIA H100 PCIe": Peak(756, 378, 51),
    r"NVIDIA H100 NVL|NVIDIA H200 NVL": Peak(835, 417, 60),
    r"NVIDIA B200": Peak(2250, 1125, 75),
    r"NVIDIA L4": Peak(121, 60, 30.3),
    r"NVIDIA L40S": Peak(362, 183, 91.6),
    r"NVIDIA A10": Peak(125, 62.5, 31.2),
    r"NVIDIA RTX A6000": Peak(154.8, 77.4, 38.7),
    r"NVIDIA RTX 6000 Ada Generation": Peak(364.2, 182.1, 91.1),
    r"NVIDIA GeForce RTX 3090": Peak(71, 35.6, 35.6),
    r"NVIDIA GeForce RTX 4090": Peak(165.2, 82.6, 82.6),
    r"NVIDIA GeForce RTX 5090": Peak(209.5, 104.8, 104.8),
}
"""By the name that torch gives a device, whole, so that no laptop or part of a card is taken for another:
NVIDIA's data sheets and architecture papers, without sparsity, bf16 accumulated in float32."""


class FlopRate:
    """Adds up the operations of every micro-batch.

    Args:
        policy: What is trained, before accelerate prepares it.
        accelerator: accelerate's view of the processes, whose operations are added up.
        settings: Precision, `compile`, and `peak_tflops`, which outranks the table.
        operations: Counts the policy's batches; made of it where not given.
    """

    def __init__(
        self,
        policy: Policy,
        accelerator: Accelerator,
        settings: TrainSection,
        operations: Callable[[Mapping[str, torch.Tensor], Policy], int] | None = None,
    ) -> None:
        self._policy, self._is_compiled = policy, settings.compile
        self._operations = TrainingOperations(policy) if operations is None else operations
        self._measured: _MeasuredCosts | None = None  # where the operations cannot be counted beforehand
        self._reports = True
        self._accelerator, self._done = accelerator, 0
        self._since: float | None = None  # the first batch
        self._peak = settings.peak_tflops
        if self._peak is None:
            self._peak = peak_tflops(_device_name(accelerator.device), settings)

    def add(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Count a micro-batch; on the host, where reading its shape waits for no device."""
        if not self._reports:
            return
        if self._since is None:
            self._since = time.perf_counter()
        if self._measured is not None:
            self._done += self._measured(batch)
            return
        try:
            self._done += self._operations(batch, self._policy)
        except UncountedError as error:
            self._do_without(error)
            self.add(batch)

    def _do_without(self, error: UncountedError) -> None:
        self._reports = not self._is_compiled
        self._measured = _MeasuredCosts()
        instead = (
            "compiled layers hide theirs from PyTorch's counter, so tflops and mfu are left out"
            if self._is_compiled
            else "PyTorch counts the first batch of each shape as it runs"
        )
        logger.warning("Operations are not counted beforehand (%s); %s.", error, instead)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Enclose the forward and backward pass of the micro-batch that was added last."""
        if not self._reports or self._measured is None or not self._measured.is_wanted:
            yield
            return
        with TrainingFlopCounter() as counter:
            yield
        self._done += self._measured.learn(counter.total)

    def take(self) -> dict[str, float]:
        """Return the rates since the last call, and start anew: to be called by all processes."""
        if not self._reports:
            return {}
        now = time.perf_counter()
        since = now if self._since is None else self._since
        rate = self._done / 1e12 / max(now - since, 1e-9)
        self._done, self._since = 0, now
        device = self._accelerator.device
        total: Any = self._accelerator.reduce(torch.tensor(rate, device=device), "sum")
        rates = {"tflops": float(total)}
        if self._peak is not None:
            rates["mfu"] = rates["tflops"] / (self._peak * self._accelerator.num_processes)
        return rates


class _MeasuredCosts:
    """The operations of batches by their shapes, as far as they were measured."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}
        self._last: Any = None

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Return the operations of a batch; 0 where its shape is new, see `is_wanted`."""
        self._last = tuple(sorted((name, tensor.shape) for name, tensor in batch.items()))
        return self._known.get(self._last, 0)

    @property
    def is_wanted(self) -> bool:
        """Whether the last batch has yet to be measured."""
        return self._last is not None and self._last not in self._known

    def learn(self, flops: int) -> int:
        """Remember the operations of the last batch and return them."""
        self._known[self._last] = flops
        return flops


def peak_tflops(device: str | None, settings: TrainSection) -> float | None:
    """Return what a device can do at most at a recipe's precision, or None where that is not known.

    Args:
        device: Name that torch gives the device.
        settings: `precision` and `tf32`.
    """
    found = next((peak for name, peak in _PEAKS.items() if device and re.fullmatch(name, device)), None)
    if found is None or (device is not None and "MIG" in device):
        return None
    if settings.precision == "bf16":
        return found.bf16
    return found.tf32 if settings.tf32 else found.fp32


def _device_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
