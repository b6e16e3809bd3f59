"""The machine that a measurement was made on: its name, its matmul peak, its memory."""

import os
import platform
import resource
import sys
import time
from pathlib import Path

import torch

from vla.bench.timing import Clock, Work

_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
_SECONDS_PER_SIZE = 1.0


def describe_machine(device: torch.device) -> str:
    """Return one line: processor, cores, memory, and the accelerator where one is used."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    line = f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    return f"{torch.cuda.get_device_name(device)} next to {line}" if device.type == "cuda" else line


def versions() -> dict[str, str]:
    """Return the versions that a measurement depends on."""
    import transformers

    import vla

    return {
        "vla": vla.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def matmul_peak(dtype: torch.dtype, clock: Clock) -> dict[str, float]:
    """Return the highest rate of a square matrix product, in FLOP/s, by kernel.

    "matmul" is `torch.matmul`. In float32 on a CPU there is a second kernel, "onednn" (`vla.nn.linear`).
    """
    kind = clock.device.type
    best: dict[str, float] = {}
    for size in _SIZES.get(kind, _SIZES["cpu"]):
        a = torch.rand(size, size, device=clock.device).sub_(0.5).to(dtype)
        for name, product in _products(a).items():
            rate = 2 * size**3 / _shortest(product, clock)
            best[name] = max(best.get(name, 0.0), rate)
    return best


def _products(a: torch.Tensor) -> dict[str, Work]:
    products: dict[str, Work] = {"matmul": lambda: torch.matmul(a, a)}
    float32_on_cpu = a.device.type == "cpu" and a.dtype == torch.float32
    if (
        float32_on_cpu
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        products["onednn"] = lambda: torch.ops.mkldnn._linear_pointwise(a, a, None, "none", [], "")
    return products


def _shortest(work: Work, clock: Clock) -> float:
    """The shortest of many runs: a peak is what the machine can do, not what it usually does."""
    work()
    start, taken = time.perf_counter(), []
    while len(taken) < 3 or time.perf_counter() - start < _SECONDS_PER_SIZE:
        taken.append(clock.seconds(work))
    return min(taken)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held so far: on a GPU its memory, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that more could be allocated; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _from_file("/proc/meminfo", "MemAvailable", scale=1024)


def _from_file(path: str, key: str, scale: int) -> int | None:
    for name, value in _fields(path):
        if name == key:
            return int(value.split()[0]) * scale
    return None


def _processor() -> str:
    names = [value for name, value in _fields("/proc/cpuinfo") if name == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def _fields(path: str) -> list[tuple[str, str]]:
    if not Path(path).is_file():
        return []
    lines = (line.partition(":") for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [(name.strip(), value.strip()) for name, _, value in lines]
