"""How much of what the devices could do went into the model.

    tflops    10^12 floating-point operations per second, of all processes together
    mfu       the same over what the devices could do at most (model FLOPs utilisation, PaLM, arXiv
              2204.02311, appendix B); left out where that is not known

Counted is what the model needs, from the shapes of the batches: see the policy's `training_flops`. Time is
wall-clock between two reports, validation and saving included, as for `samples_per_second`.
"""

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from vla.train.recipe import TrainSection


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
    """Adds up the operations of every micro-batch; nothing where the policy does not count them.

    Args:
        policy: With `training_flops`, as `FlowPolicy` has it; otherwise no numbers are given.
        accelerator: To add up over the processes.
        settings: Precision, draws, and `peak_tflops`, which outranks the table.
    """

    def __init__(self, policy: Any, accelerator: Accelerator, settings: TrainSection) -> None:
        make_count = getattr(policy, "training_flops", None)
        self._count = None if make_count is None else make_count(settings.draws_per_observation)
        self._accelerator, self._done, self._since = accelerator, 0, time.perf_counter()
        self._peak = settings.peak_tflops
        if self._peak is None:
            self._peak = peak_tflops(_device_name(accelerator.device), settings)

    def add(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Count a micro-batch; on the host, where reading its shape waits for no device."""
        if self._count is not None:
            self._done += self._count(batch)

    def take(self) -> dict[str, float]:
        """Return the rates since the last call, and start anew: to be called by all processes."""
        if self._count is None:
            return {}
        now = time.perf_counter()
        rate = self._done / 1e12 / max(now - self._since, 1e-9)
        self._done, self._since = 0, now
        device = self._accelerator.device
        total: Any = self._accelerator.reduce(torch.tensor(rate, device=device), "sum")
        rates = {"tflops": float(total)}
        if self._peak is not None:
            rates["mfu"] = rates["tflops"] / (self._peak * self._accelerator.num_processes)
        return rates


def peak_tflops(device: str | None, settings: TrainSection) -> float | None:
    """Return what a device can do at most at a recipe's precision, or None where that is not known.

    Args:
        device: As torch names it.
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
