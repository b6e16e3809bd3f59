"""Operations per second: what is added up, over which time, against which peak."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.train.conftest import numbers
from vla.bench.flops import count_flops
from vla.train.loop import train
from vla.train.monitor import flop_rate
from vla.train.monitor.flop_rate import FlopRate, peak_tflops
from vla.train.monitor.metrics import read_metrics
from vla.train.monitor.operations import TrainingOperations, UncountedError
from vla.train.recipe import TrainSection
from vla.train.setup.run import set_up


class Accelerator(SimpleNamespace):
    """Several processes that all have done the same."""

    device = torch.device("cpu")

    def reduce(self, value, how):
        assert how == "sum"
        return value * self.num_processes


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(flop_rate, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def counting(batch, policy):
    """In place of `TrainingOperations`: batches say what they cost."""
    return batch["cost"]


@pytest.mark.parametrize("processes", [1, 4])
def test_rates_are_of_the_time_since_the_last_report_and_of_all_processes(clock, processes):
    settings = TrainSection(peak_tflops=8.0)
    rate = FlopRate(None, Accelerator(num_processes=processes), settings, counting)
    for cost in (2e12, 6e12):
        rate.add({"cost": cost})
    clock.seconds += 2
    assert rate.take() == {"tflops": 4.0 * processes, "mfu": 0.5}
    rate.add({"cost": 2e12})
    clock.seconds += 1
    assert rate.take() == {"tflops": 2.0 * processes, "mfu": 0.25}


def refusing(batch, policy):
    raise UncountedError("Some pass depends on values: item()")


def test_where_values_are_needed_each_shape_is_measured_once(clock, monkeypatch, caplog):
    policy, counters = nn.Linear(3, 5), []
    counter = flop_rate.TrainingFlopCounter
    monkeypatch.setattr(flop_rate, "TrainingFlopCounter", lambda: counters.append(1) or counter())
    rate = FlopRate(policy, Accelerator(num_processes=1), TrainSection(), refusing)
    for rows in (2, 4, 2, 2):
        batch = {"x": torch.ones(rows, 3)}
        rate.add(batch)
        with rate.measured():
            policy(batch["x"]).sum().backward()
    clock.seconds += 1
    # Forward, and the gradient of the weights; none of the input is wanted.
    assert rate.take()["tflops"] * 1e12 == pytest.approx(2 * 2 * (3 * 5) * (2 + 4 + 2 + 2))
    assert len(counters) == 2
    said = [record.message for record in caplog.records]
    assert said == [
        "Operations are not counted beforehand (Some pass depends on values: item()); PyTorch counts the "
        "first batch of each shape as it runs."
    ]


def test_compiled_layers_of_a_pass_that_needs_values_give_no_numbers(caplog):
    rate = FlopRate(None, Accelerator(num_processes=1), TrainSection(compile=True), refusing)
    rate.add({"x": torch.ones(1, 3)})
    with rate.measured():
        pass
    assert rate.take() == {}
    assert "so tflops and mfu are left out" in caplog.text


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", (312, 156, 19.5)),
        ("NVIDIA A100 80GB PCIe", (312, 156, 19.5)),
        ("NVIDIA H100 80GB HBM3", (989, 494, 67)),
        ("NVIDIA H100 PCIe", (756, 378, 51)),
        ("NVIDIA H200", (989, 494, 67)),
        ("NVIDIA L40S", (362, 183, 91.6)),
        ("NVIDIA GeForce RTX 4090", (165.2, 82.6, 82.6)),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", (None,) * 3),
        ("NVIDIA GeForce RTX 4090 D", (None,) * 3),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", (None,) * 3),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", (None,) * 3),
        ("Some GPU of tomorrow", (None,) * 3),
        (None, (None,) * 3),
    ],
)
def test_peaks_are_those_of_the_whole_name_and_the_precision(device, expected):
    ways = [{"precision": "bf16"}, {"precision": "no"}, {"precision": "no", "tf32": False}]
    assert tuple(peak_tflops(device, TrainSection(**way)) for way in ways) == expected


def test_a_run_reports_what_pytorch_counts(tiny, monkeypatch):
    """Two micro-batches of known cost per step, against PyTorch's count of the same batches."""
    monkeypatch.setattr(flop_rate, "time", SimpleNamespace(perf_counter=iter(range(100)).__next__))
    recipe = tiny("train.steps=2", "train.accumulation=2", "train.peak_tflops=1e-3", "data.augment=false")
    result = train(recipe, progress=False)
    job = set_up(recipe, None, 0, 1)
    policy, batches = job.policy.train(), iter(job.loader)
    for record in [one for one in read_metrics(result.folder / "metrics.jsonl") if "tflops" in one]:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            pair = [next(batches)[0] for _ in range(2)]
            steps = [lambda b=b: policy(**b).loss.backward() for b in pair]
            flops = sum(count_flops(step) for step in steps)
        assert record["tflops"] == pytest.approx(flops / 1e12, rel=1e-6)
        assert record["mfu"] == pytest.approx(record["tflops"] / 1e-3)


def test_a_run_whose_pass_needs_values_reports_what_pytorch_counts_and_has_the_same_losses(tiny, monkeypatch):
    monkeypatch.setattr(flop_rate, "time", SimpleNamespace(perf_counter=iter(range(100)).__next__))
    overrides = ("train.steps=2", "train.accumulation=2", "data.augment=false", "train.precision=bf16")
    plain = train(tiny(*overrides), progress=False)
    monkeypatch.setattr(TrainingOperations, "__call__", lambda self, batch, policy: refusing(batch, policy))
    recipe = tiny(*overrides, output="measured")
    result = train(recipe, progress=False)
    assert numbers(result.folder) == numbers(plain.folder)
    job = set_up(recipe, None, 0, 1)
    policy, batches = job.policy.train(), iter(job.loader)
    for record in [one for one in read_metrics(result.folder / "metrics.jsonl") if "tflops" in one]:
        flops = 0
        for _ in range(2):
            batch, _ = next(batches)
            with torch.autocast("cpu", torch.bfloat16):
                flops += count_flops(lambda b=batch: policy(**b).loss.backward())
        assert record["tflops"] == pytest.approx(flops / 1e12, rel=1e-6)


def test_nothing_is_guessed_on_a_processor_and_no_loss_changes(tiny, monkeypatch, tmp_path):
    first = train(tiny("train.steps=2", output="with"), progress=False)
    assert first.metrics["tflops"] > 0
    assert "mfu" not in first.metrics
    monkeypatch.setattr(FlopRate, "add", lambda self, batch: None)
    train(tiny("train.steps=2", output="without"), progress=False)
    assert numbers(tmp_path / "with") == numbers(tmp_path / "without")
