"""The stop-watch: order, rounds, quartiles, clocks."""

import time

import pytest
import torch

from vla.bench import timing
from vla.bench.timing import Clock, Timing, measure

WALL = Clock(torch.device("cpu"))


def test_works_take_turns():
    order = []
    found = measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, WALL, rounds=3)
    assert order == ["a", "b"] * 3
    assert found["a"].rounds == found["b"].rounds == 3


def test_rounds_end_when_the_time_is_up(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS_PER_PART", 0.0)
    assert measure({"a": lambda: time.sleep(0.001)}, WALL)["a"].rounds == timing.MIN_ROUNDS
    monkeypatch.setattr(timing, "SECONDS_PER_PART", 1000.0)
    assert measure({"a": lambda: None}, WALL)["a"].rounds == timing.MAX_ROUNDS


def test_summary_is_median_and_quartiles():
    assert Timing.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Timing(3.0, 2.0, 4.0, 5)
    assert Timing.of([7.0]) == Timing(7.0, 7.0, 7.0, 1)


@pytest.mark.parametrize(("process", "counts_sleep"), [(False, True), (True, False)])
def test_process_clock_does_not_count_what_the_process_does_not_do(process, counts_sleep):
    taken = Clock(torch.device("cpu"), process).seconds(lambda: time.sleep(0.05))
    assert (taken > 0.04) == counts_sleep
