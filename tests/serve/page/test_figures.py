"""Histograms against numpy's, and the executed part of a chunk against what was executed."""

import json

import numpy as np
import pytest
from vla_client.continuation import Continuation

from vla.serve.page.figures import BINS, MAX_DIMENSIONS, chunk_figure, executed, histogram
from vla.serve.page.watch import Snapshot


@pytest.mark.parametrize("scale", [1e-5, 0.003, 0.05, 4.0])
@pytest.mark.parametrize("count", [1, 2, 50, 1000])
def test_a_histogram_counts_as_numpy_does(scale, count):
    seconds = scale * (1 + np.random.default_rng(count).gamma(2.0, 1.0, count))
    made = histogram(seconds.tolist())
    bins = len(made["counts"])
    edges = made["low"] + made["step"] * np.arange(bins + 1)
    assert bins <= BINS
    assert np.abs(np.histogram(1e3 * seconds, edges)[0] - made["counts"]).max() <= 1  # at an edge
    assert sum(made["counts"]) + made["over"] == made["count"] == count
    assert made["over"] <= 0.01 * count + 1
    assert made["low"] <= 1e3 * seconds.min()
    assert made["max"] == pytest.approx(1e3 * seconds.max(), abs=1e-3)
    assert f"{made['step']:e}"[0] in "125"
    json.dumps(made, allow_nan=False)


def test_no_request_has_no_histogram_and_equal_ones_have_a_bar():
    assert histogram([]) is None
    made = histogram([0.02] * 10)
    assert sum(made["counts"]) == max(made["counts"]) == 10


def test_one_slow_call_does_not_flatten_the_others():
    made = histogram([*np.linspace(0.020, 0.030, 200), 9.0])
    assert 1 <= made["over"] <= 3  # the hundredth part at most
    assert made["max"] == 9000.0
    assert sum(count > 0 for count in made["counts"]) > 15


def seen(**changes):
    chunk = np.arange(20, dtype=np.float32).reshape(10, 2) ** 2
    made = {"chunk": chunk + 7, "previous": chunk, "gap": 0.1, **changes}
    return Snapshot(1, "1.1", 0.0, **made)


def left(steps, change=0.0):
    return Continuation(seen().previous[steps:] + change, 1)


@pytest.mark.parametrize("steps", [0, 3, 9])
def test_a_client_tells_what_was_executed(steps):
    assert executed(seen(continuing=left(steps)), 50.0) == (steps, "client")
    shortened = Continuation(seen().previous[steps : steps + 1], 1)  # of what is left, only the beginning
    assert executed(seen(continuing=shortened), None) == (steps, "client")


def test_else_the_clock_does():
    assert executed(seen(), 50.0) == (5, "clock")
    assert executed(seen(gap=9.0), 50.0) == (10, "clock")  # it has no more
    assert executed(seen(gap=-0.5), 50.0) == (0, "clock")  # asked before the reply was sent
    assert executed(seen(continuing=left(3, change=5.0)), 50.0) == (5, "clock")  # of another chunk
    assert executed(seen(continuing=Continuation(np.zeros((2, 3)), 0)), 50.0) == (5, "clock")
    assert executed(seen(continuing=Continuation(np.zeros((0, 2)), 0)), 50.0) == (5, "clock")


def test_or_nothing_does():
    assert executed(seen(), None) is None
    assert executed(seen(gap=None), 50.0) is None
    assert executed(seen(previous=None, continuing=left(3)), 50.0) is None


def test_a_figure_holds_a_line_for_each_dimension():
    made = chunk_figure(seen(continuing=left(3)), 50.0)
    assert made["values"] == (seen().chunk.T).tolist()
    assert made["previous"] == (seen().previous.T).tolist()
    assert (made["executed"], made["said_by"], made["delay"], made["left_out"]) == (3, "client", 1, 0)
    first = chunk_figure(seen(previous=None), 50.0)
    assert first["previous"] is first["executed"] is first["said_by"] is None
    assert chunk_figure(seen(), None)["previous"] is None  # nobody knows where the last one begins in it
    assert chunk_figure(seen(chunk=None), 50.0) is None


def test_large_chunks_and_odd_values_stay_json():
    chunk = np.full((1000, 200), 0.1234567, np.float32)
    chunk[0, 0] = np.nan
    made = chunk_figure(seen(chunk=chunk, previous=None), None)
    assert len(made["values"]) == MAX_DIMENSIONS
    assert made["left_out"] == 200 - MAX_DIMENSIONS
    assert made["values"][0][:2] == [None, 0.12346]
    assert len(json.dumps(made, allow_nan=False)) < 200_000
