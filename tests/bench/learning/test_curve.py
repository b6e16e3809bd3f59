"""When a curve gets to a loss, against numpy's interpolation and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.bench.learning.curve import Point, mean_curve, seconds_to_reach


def curve(seconds, losses):
    return [Point(i, t, {"loss": v}) for i, (t, v) in enumerate(zip(seconds, losses, strict=True))]


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.01, 1)), min_size=2, max_size=12),
    st.floats(0, 1),
)
def test_a_falling_curve_is_read_as_numpy_interpolates(increments, where):
    seconds, drops = np.cumsum(increments, axis=0).T
    losses = 100.0 - drops
    target = losses[-1] + where * (losses[0] - losses[-1])
    expected = np.interp(target, losses[::-1], seconds[::-1])
    assert seconds_to_reach(curve(seconds, losses), "loss", target) == pytest.approx(expected)


def test_the_first_time_counts_and_what_comes_later_does_not():
    points = curve([10, 20, 30, 40], [1.0, 0.4, 0.9, 0.1])
    assert seconds_to_reach(points, "loss", 0.4) == 20
    assert seconds_to_reach(points, "loss", 0.7) == 15
    assert seconds_to_reach(points, "loss", 0.1) == 40


def test_a_curve_that_never_gets_there_has_no_time():
    assert seconds_to_reach(curve([10, 20], [1.0, 0.5]), "loss", 0.49) is None
    assert seconds_to_reach([], "loss", 0.5) is None


def test_a_curve_that_begins_below_is_there_at_its_first_point():
    assert seconds_to_reach(curve([10, 20], [0.3, 0.2]), "loss", 0.5) == 10


def test_the_named_loss_is_read():
    points = [Point(1, 5.0, {"a": 1.0, "b": 0.0}), Point(2, 9.0, {"a": 0.0, "b": 0.0})]
    assert seconds_to_reach(points, "a", 0.5) == 7.0
    assert seconds_to_reach(points, "b", 0.5) == 5.0


def test_the_mean_curve_is_the_mean_of_seconds_and_of_losses():
    mean = mean_curve([curve([1.0, 2.0], [6.0, 4.0]), curve([3.0, 5.0], [2.0, 1.0])])
    assert mean == curve([2.0, 3.5], [4.0, 2.5])
