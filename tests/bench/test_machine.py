"""Reading the machine; no number of it is asserted, only that it is one."""

import pytest
import torch

from vla.bench import machine
from vla.bench.timing import Clock

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(machine, "_SIZES", {"cpu": (64,)})
    monkeypatch.setattr(machine, "_SECONDS_PER_SIZE", 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_names_its_kernels(quick, dtype):
    peak = machine.matmul_peak(dtype, Clock(CPU))
    assert "matmul" in peak
    assert ("onednn" in peak) <= (dtype == torch.float32)
    assert all(rate > 0 for rate in peak.values())


def test_machine_and_versions_are_named():
    assert "cores" in machine.describe_machine(CPU)
    assert machine.versions()["torch"] == torch.__version__


def test_peak_memory_grows_with_what_is_held():
    before = machine.peak_memory(CPU)
    held = torch.ones(60_000_000)
    assert machine.peak_memory(CPU) >= max(before, held.nbytes)


def test_free_memory_is_unknown_where_the_system_does_not_say(monkeypatch):
    monkeypatch.setattr(machine, "_fields", lambda path: [("MemAvailable", "12 kB")])
    assert machine.free_memory(CPU) == 12 * 1024
    monkeypatch.setattr(machine, "_fields", lambda path: [])
    assert machine.free_memory(CPU) is None
    assert machine.describe_machine(CPU)


def test_missing_file_has_no_fields(tmp_path):
    assert machine._fields(str(tmp_path / "none")) == []
