"""What holds of asynchronous execution whatever the latencies are."""

import numpy as np
import pytest
from fake_policies import Telling, steps

from vla_client.chunks import RecedingHorizon
from vla_client.execution import Lockstep, Prefetch, RealTimeChunking, Simulated, TemporalEnsembling

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

quick = settings(deadline=None, max_examples=60, derandomize=True)


@quick
@given(
    execute=st.integers(1, 8),
    spare=st.integers(0, 8),
    latencies=st.lists(st.integers(0, 8), min_size=40, max_size=40),
)
def test_every_action_is_of_the_newest_chunk_that_had_come(execute, spare, latencies):
    """And it is the one of its step: none is skipped, none repeated."""
    # A chunk comes at most 8 steps after it was asked for, so that none is used up before.
    policy = Telling(execute + spare + 16)
    made = steps(Prefetch(policy, execute, engine=Simulated(lambda n: latencies[n])), 40)
    due = [asked + (latency if n else 0) for n, (asked, latency) in enumerate(zip(policy.asked, latencies))]
    for step, (origin, index) in enumerate(made):
        assert origin + index == step
        assert origin == max(asked for asked, at in zip(policy.asked, due) if at <= step)
    for n in range(1, len(policy.asked)):
        assert policy.asked[n] == max(policy.asked[n - 1] + execute, due[n - 1])


@quick
@given(horizon=st.integers(1, 9), data=st.data(), count=st.integers(1, 30))
def test_without_latency_it_is_receding_horizon(horizon, data, count):
    execute = data.draw(st.integers(1, horizon))
    policies = Telling(horizon), Telling(horizon)
    made = steps(Prefetch(policies[0], execute, engine=Simulated(0)), count)
    assert made == steps(RecedingHorizon(policies[1], execute), count)
    assert policies[0].asked == policies[1].asked


@quick
@given(
    horizon=st.integers(2, 10),
    data=st.data(),
    latencies=st.lists(st.integers(0, 12), min_size=60, max_size=60),
    hold=st.sampled_from([None, "last"]),
    method=st.sampled_from(["guided", "prefix"]),
)
def test_what_is_continued_is_what_is_executed(horizon, data, latencies, hold, method):
    """Whatever happens: the rest of the chunk begins at the present step, and a prefix holds at its seam."""
    execute = data.draw(st.integers(1, horizon - 1))
    initial = data.draw(st.integers(0, min(execute, horizon - execute)))
    policy = Telling(horizon)
    strategy = RealTimeChunking(
        policy, execute, method=method, initial_delay=initial, max_delay=execute, hold=hold,
        engine=Simulated(lambda n: latencies[n]),
    )  # fmt: skip
    sources = []
    for t in range(60):
        strategy.act({"t": t})
        sources.append(strategy.source)
    origins = [source[0] for source in sources if source is not None]
    assert origins == sorted(origins)
    assert all(source is None or sum(source) == t for t, source in enumerate(sources))
    for asked, one in zip(policy.asked, policy.continued):
        if one is None:
            continue
        assert 0 <= one.delay <= len(one.actions)
        origin = int(np.floor(one.actions[0, 0] + 1e-3))  # the chunk that was executed at that step
        np.testing.assert_allclose(one.actions[0, 0], origin + (asked - origin) / 100, rtol=1e-5)
        taken = [t for t, source in enumerate(sources) if source is not None and source[0] == asked]
        if method == "prefix" and taken:
            assert taken[0] - asked <= one.delay
    assert strategy.stats.steps == 60
    assert strategy.stats.held == sources.count(None)


@quick
@given(
    coefficient=st.floats(-1, 1),
    every=st.integers(1, 3),
    latency=st.integers(0, 4),
    horizon=st.integers(8, 12),
)
def test_ensembling_is_the_weighted_mean_of_all_chunks_that_have_come(coefficient, every, latency, horizon):
    random = np.random.default_rng(0)
    chunks = random.normal(size=(40, horizon, 2))

    class Random(Telling):
        def infer(self, observation):
            super().infer(observation)
            return {"actions": chunks[observation["t"]]}

    policy = Random(horizon)
    strategy = TemporalEnsembling(policy, coefficient, execute=every, engine=Simulated(latency))
    made = [strategy.act({"t": t}) for t in range(40)]
    for step, action in enumerate(made):
        came = [t for t in policy.asked if t + (latency if t else 0) <= step < t + horizon]
        weights = [np.exp(-coefficient * i) for i in range(len(came))]  # the oldest first
        want = sum(w * chunks[t][step - t] for w, t in zip(weights, came)) / sum(weights)
        np.testing.assert_allclose(action, want, atol=1e-9)
    if latency == 0:
        assert policy.asked == list(range(0, 40, every))


@quick
@given(latencies=st.lists(st.integers(0, 5), min_size=4, max_size=4), execute=st.integers(1, 5))
def test_robots_in_lockstep_do_what_each_does_alone(latencies, execute):
    class Batched:
        def __init__(self):
            self.batches, self.one = [], Telling(12)

        def infer_batch(self, observations, *, continuing=None):
            self.batches.append(len(observations))
            every = continuing or [None] * len(observations)
            return [self.one.infer(one, continuing=with_it) for one, with_it in zip(observations, every)]

    class Session:
        def reset(self):
            pass

        def infer(self, observation):
            raise AssertionError("the batch answers")

    batched = Batched()
    lockstep = Lockstep(batched, max_batch=3)
    robots = [RealTimeChunking(Session(), execute, engine=lockstep.engine(latency)) for latency in latencies]
    alone = [RealTimeChunking(Telling(12), execute, engine=Simulated(latency)) for latency in latencies]
    for t in range(20):
        for robot in robots:
            robot.prepare({"t": t})
        for robot, other in zip(robots, alone):
            np.testing.assert_array_equal(robot.act({"t": t}), other.act({"t": t}))
    assert batched.batches[:2] == [3, 1]
    robots[0].reset()
    np.testing.assert_array_equal(robots[0].act({"t": 7}), [7.0, 7.0])
