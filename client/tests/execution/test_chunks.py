"""Chunks executed one action at a time: what is handed out is a copy, and no frame of the past is missing."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from fake_policies import Manual, Telling, Watching, steps

from vla_client.chunks import ActionQueue, RecedingHorizon
from vla_client.errors import PastError
from vla_client.execution import (
    Pausing,
    Prefetch,
    RealTimeChunking,
    Simulated,
    TemporalEnsembling,
    Watchdog,
)

HOME = np.array([5.0, 5.0], np.float32)


def spoiling(seen, last):
    """A hold function that writes into what it is given, and returns an array of its own."""
    last *= 100
    return HOME


def late(number):
    return 4 if number else 0


MAKE = {
    "receding": lambda hold: RecedingHorizon(Telling(4), 2),
    "prefetch": lambda hold: Prefetch(Telling(4), 3, engine=Simulated(late), hold=hold),
    "pausing": lambda hold: Pausing(Telling(4), 3, engine=Simulated(late), hold=hold),
    "guided": lambda hold: RealTimeChunking(Telling(4), 3, engine=Simulated(late), hold=hold),
    "ensembling": lambda hold: TemporalEnsembling(Telling(4), execute=3, engine=Simulated(late), hold=hold),
}


@pytest.mark.parametrize("hold", ["last", "zero", spoiling])
@pytest.mark.parametrize("name", MAKE)
def test_a_loop_may_write_into_actions_and_answers(name, hold):
    quiet, loud = MAKE[name](hold), MAKE[name](hold)
    for t in range(12):
        action = loud.act({"t": t})
        np.testing.assert_array_equal(action, quiet.act({"t": t}))
        action *= 100
        if loud.prediction is not None:
            loud.prediction["actions"] *= 100
    assert name == "receding" or quiet.stats.held
    assert HOME.tolist() == [5, 5]


@pytest.mark.parametrize(("hold", "held"), [("last", 0.0), ("zero", 0.0), (spoiling, 5.0)])
def test_and_into_those_of_a_watchdog(hold, held):
    gate = threading.Event()
    gate.set()

    class Gated(Telling):
        def infer(self, observation):
            assert gate.wait(20)
            return super().infer(observation)

    dog = Watchdog(RecedingHorizon(Gated(4), 1), 60.0, hold)
    action = dog.act({"t": 0})
    gate.clear()
    dog._deadline = 0.0
    for t in (1, 2, 3):
        action += 7
        action = dog.act({"t": t})
        assert action.tolist() == [held] * 2
    gate.set()
    dog.close()
    assert HOME.tolist() == [5, 5]


def test_a_queue_hands_out_copies():
    chunk = np.arange(8.0).reshape(4, 2)
    queue = ActionQueue(2)
    queue.push(chunk)
    chunk[:] = -1
    queue.pop()[:] = -1
    queue.tail[:] = -1
    assert (queue.pop().tolist(), queue.tail.tolist()) == ([2, 3], [[4, 5], [6, 7]])


def failing(observation):
    raise ArithmeticError("the camera gave nothing")


@pytest.mark.parametrize("call", ["infer", "observe"])
def test_a_frame_that_is_refused_ends_the_episode_of_a_policy_with_a_past(call):
    policy = Watching(4)
    strategy = RecedingHorizon(policy, 2)
    first = 2 if call == "infer" else 3
    steps(strategy, first)
    setattr(policy, call, failing)
    with pytest.raises(ArithmeticError):
        strategy.act({"t": first})
    delattr(policy, call)
    shown = [*policy.frames]
    for t in (4, 5):
        with pytest.raises(PastError, match=r"missed frames of the past \(the camera gave nothing\); reset"):
            strategy.act({"t": t})
    assert policy.frames == shown == list(range(first))
    strategy.reset()
    assert steps(strategy, 2) == [(0, 0), (0, 1)]


def test_one_of_the_present_goes_without():
    policy = Watching(4)
    policy.past = 0
    strategy = RecedingHorizon(policy, 2)
    policy.infer = failing
    with pytest.raises(ArithmeticError):
        strategy.act({"t": 0})
    del policy.infer
    assert steps(strategy, 2, start=1) == [(1, 0), (1, 1)]


def test_a_watchdog_over_a_policy_with_a_past_ends_the_episode_where_a_frame_is_not_shown():
    worker, policy = Manual(), Watching(4)
    dog = Watchdog(RecedingHorizon(policy, 2), 0.0, lambda seen, last: np.zeros(2), executor=worker)
    dog.act({"t": 0})
    worker.run()
    dog.act({"t": 1})  # late, but shown
    for t in (2, 3):
        with pytest.raises(PastError, match=r"reads frames of the past.*the episode is over\. reset\(\)"):
            dog.act({"t": t})
    worker.run()
    assert policy.frames == [0, 1]
    with pytest.raises(PastError, match="This episode is over"):
        dog.act({"t": 4})
    dog.reset()
    dog.act({"t": 0})
    worker.run()
    assert (policy.frames, policy.resets) == ([0, 1, 0], 1)
    policy.past = 0
    assert [dog.act({"t": t}).tolist() for t in (1, 2)] == [[0, 0]] * 2
