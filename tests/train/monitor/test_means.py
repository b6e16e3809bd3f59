import json

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import report_of
from vla.train.monitor.means import ProcessMeans, RunningMeans, mean_by_name


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.integers(0, 20))
def test_means_survive_a_restart_exactly(values, cut):
    whole, before, after = RunningMeans(), RunningMeans(), RunningMeans()
    for value in values:
        whole.add({"x": value})
    for value in values[:cut]:
        before.add({"x": value})
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for value in values[cut:]:
        after.add({"x": value})
    mean = whole.take()
    assert mean == after.take()
    assert mean["x"] == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_a_metric_of_some_steps_has_their_mean():
    means = RunningMeans()
    means.add({"loss": 1.0, "text_loss": 4.0})
    means.add({"loss": 3.0})
    assert means.take() == {"loss": 2.0, "text_loss": 4.0}
    assert means.take() == {}


def test_sums_of_earlier_versions_are_read():
    """They had one count for all names."""
    means = RunningMeans()
    means.load_state_dict({"sums": {"loss": 6.0}, "count": 2})
    means.add({"loss": 3.0})
    assert means.take() == {"loss": 3.0}


def test_a_metric_of_some_micro_batches_has_their_mean():
    reports = [{"loss": 1.0}, {"loss": 2.0, "text_loss": 4.0}, {"loss": 6.0, "text_loss": 5.0}]
    tensors = [{name: torch.tensor(value) for name, value in one.items()} for one in reports]
    means = mean_by_name(tensors)
    assert {name: value.item() for name, value in means.items()} == {"loss": 3.0, "text_loss": 4.5}


def test_one_process_has_its_own_values():
    means = ProcessMeans(Accelerator(cpu=True))
    assert means({"loss": torch.tensor(2.0), "norm": torch.tensor(0.5, dtype=torch.float64)}) == {
        "loss": 2.0,
        "norm": 0.5,
    }


@pytest.mark.slow  # several processes
def test_processes_average_whatever_any_of_them_has():
    assert report_of("tests.train.monitor.means_of_processes") == [
        {"loss": 1.5},
        {"loss": 1.5, "text_loss": 4.0},
        {"loss": 2.5, "text_loss": 3.0, "accuracy": 0.25},
        {"loss": 1.5},
    ]
