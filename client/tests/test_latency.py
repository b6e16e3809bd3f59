"""Statistics of the last calls."""

from __future__ import annotations

import math

import numpy as np

from vla_client.latency import Latency


def test_percentiles_are_numpys():
    times = [3.0, 1.0, 10.0, 2.0, 8.0, 2.5]
    latency = Latency()
    for time in times:
        latency.add(time, time / 2)
    trip = latency.round_trip
    assert np.allclose([trip.p50, trip.p95], np.percentile(times, [50, 95]))
    assert (trip.max, trip.last) == (10.0, 2.5)
    assert np.isclose(latency.server.p95, np.percentile(times, 95) / 2)


def test_one_slow_call_is_forgotten():
    latency = Latency(window=10)
    latency.add(5000.0, 4000.0)
    for _ in range(10):
        latency.add(10.0, None)
    assert latency.round_trip.max == 10.0
    assert latency.count == 11


def test_before_the_first_call_nothing_is_known():
    latency = Latency()
    assert latency.count == 0
    assert math.isnan(latency.round_trip.p50)
    assert math.isnan(latency.server.max)
