import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from tests.processes import report_of
from tests.train.conftest import numbers, training_tensors
from vla.errors import ConfigError, TrainingError
from vla.train import train
from vla.train.ema import WeightAverage, decay_at
from vla.train.monitor.metrics import read_metrics
from vla.train.recipe import TrainSection


def contents(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def raw_weights(checkpoint):
    tensors = training_tensors(checkpoint)
    return {name.removeprefix("raw_weights."): one for name, one in tensors.items() if name.startswith("raw")}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@given(decay=st.floats(0.01, 0.999), start=st.floats(-3, 3), slope=st.floats(-1, 1), steps=st.integers(0, 30))
def test_average_under_a_constant_gradient(decay, start, slope, steps):
    """w_n = w_0 - n s, so the average lags: a_n = w_n + s d (1 - d^n) / (1 - d)."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(start)
    average, optimizer = WeightAverage(model, decay), torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(steps):
        model.weight.grad = torch.full_like(model.weight, slope)
        optimizer.step()
        average.update()
    with average.averaged():
        found = model.weight.item()
    raw = start - steps * slope
    expected = raw + slope * decay * (1 - decay**steps) / (1 - decay)
    assert found == pytest.approx(expected, abs=1e-4)
    assert model.weight.item() == pytest.approx(raw, abs=1e-4)


def test_decay_rises_as_diffusion_policys_does():
    """Their count n of updates begins at -1, and their decay is 1 - (1 + n)^-0.75 from n = 1 on."""
    section = TrainSection(ema=0.9999, ema_power=0.75)
    theirs = [0.0, 0.0, *(1 - (1 + n) ** -0.75 for n in range(1, 50))]
    assert [decay_at(step, section) for step in range(51)] == pytest.approx(theirs)
    assert decay_at(10**6, section) == 0.9999
    assert decay_at(0, TrainSection(ema=0.9)) == 0.9


def test_average_with_a_rising_decay_is_the_weighted_sum():
    model, section = nn.Linear(1, 1, bias=False), TrainSection(ema=0.6, ema_power=0.5)
    average, expected = WeightAverage(model, 0.6), model.weight.item()
    for step, (value, decay) in enumerate([(3.0, 0.0), (5.0, 0.0), (2.0, 1 - 2**-0.5), (7.0, 1 - 3**-0.5)]):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(decay_at(step, section))
        expected = decay * expected + (1 - decay) * value
    with average.averaged():
        assert model.weight.item() == pytest.approx(expected, abs=1e-6)


def test_power_needs_an_average():
    with pytest.raises(ValueError, match="ema_power says how the decay rises"):
        TrainSection(ema_power=0.75)


@given(st.integers(0, 2**31), st.booleans())
def test_swapping_and_restoring_is_the_identity(seed, fails):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2).requires_grad_(False))
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.7)
    before = contents(model)
    average.update()
    with average.averaged():
        first = contents(model)
    assert equal(contents(model), before)
    try:
        with average.averaged():
            assert equal(contents(model), first)
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert equal(contents(model), before)
    assert not equal(first, before)
    assert torch.equal(first["2.weight"], before["2.weight"])


def test_only_what_is_trained_is_averaged():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    average = WeightAverage(model, 0.9)
    assert average.state_dict().keys() == {"0.weight", "0.bias"}
    with pytest.raises(TrainingError, match=r"2 differ, '1\.bias' first"):
        average.load_state_dict(contents(model))


def test_unreachable_weights_are_refused():
    with pytest.raises(ConfigError, match=r"'weight' is torch\.bfloat16"):
        WeightAverage(nn.Linear(2, 2).bfloat16(), 0.9)
    partitioned = nn.Linear(2, 2)
    partitioned.weight.ds_id = 0
    with pytest.raises(ConfigError, match="ZeRO-3"):
        WeightAverage(partitioned, 0.9)


def test_sharded_average_is_the_average():
    report = report_of("tests.train.checkpoint.sharded_average")
    # 26 weights; the larger half of axis 0 is rank 0's: 3 of 5 rows and 1 of 1.
    assert report.pop("held") == 18 / 26
    assert max(report.values()) < 1e-6, report


def test_a_checkpoint_holds_both(tiny):
    plain = train(tiny("train.steps=1"), progress=False)
    result = train(tiny("train.steps=1", "train.ema=0.75", output="averaged"), progress=False)
    weights, other = (raw_weights(run.checkpoint) for run in (result, plain))
    assert not other
    ours, theirs = (load_file(run.checkpoint / "model.safetensors") for run in (result, plain))
    assert weights.keys() >= ours.keys()
    assert all(torch.equal(weights[name], theirs[name]) for name in ours)  # the raw run is the plain run
    start = train(
        tiny("train.steps=1", "train.learning_rate=1e-30", "train.final_learning_rate=0", output="start"),
        progress=False,
    )
    began = load_file(start.checkpoint / "model.safetensors")
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, 0.75 * began[name] + 0.25 * theirs[name], rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_validation_and_open_loop_see_the_average(tiny):
    seen = []

    def open_loop(policy, job):
        seen.append(contents(policy))
        return {}

    overrides = ["train.steps=3", "train.open_loop_every=3", "train.ema=0.9", "train.learning_rate=1e-2"]
    result = train(tiny(*overrides), open_loop=open_loop, progress=False)
    stored = load_file(result.checkpoint / "model.safetensors")
    assert all(torch.equal(seen[0][name], stored[name]) for name in stored)
    plain = train(tiny("train.steps=3", "train.learning_rate=1e-2", output="plain"), progress=False)
    ours, theirs = (read_metrics(run.folder / "metrics.jsonl") for run in (result, plain))
    assert [r["loss"] for r in ours if "loss" in r] == [r["loss"] for r in theirs if "loss" in r]
    assert ours[-1]["validation_loss"] != theirs[-1]["validation_loss"]


def test_resumed_run_equals_the_unbroken_one(tiny):
    ema = ["train.ema=0.8", "train.ema_power=0.75", "train.decay_steps=6"]
    whole = train(tiny(*ema, output="whole"), progress=False)
    train(tiny(*ema, "train.steps=4"), progress=False)
    resumed = train(tiny(*ema), resume=True, progress=False)
    assert numbers(resumed.folder) == numbers(whole.folder)
    ours, theirs = (load_file(run.checkpoint / "model.safetensors") for run in (resumed, whole))
    assert equal(ours, theirs)
    ours, theirs = (raw_weights(run.checkpoint) for run in (resumed, whole))
    assert equal(ours, theirs)
