"""Real time, with a worker that runs when it is told to and a clock that is set by hand."""

import threading
import time

import numpy as np
import pytest
from fake_policies import Manual, Telling, Watching, steps, told

from vla_client.chunks import RecedingHorizon
from vla_client.errors import ConfigError, DeadlineError, PastError
from vla_client.execution import Prefetch, RealTimeChunking, Simulated, Threaded, Watchdog
from vla_client.execution.engines import Request


@pytest.fixture
def worker():
    return Manual()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def started(worker, policy, clock=None, **options):
    """A strategy that has its first chunk."""
    engine = Threaded(worker, clock or Clock())
    strategy = RealTimeChunking(policy, 2, engine=engine, **options)
    strategy.prepare({"t": 0})
    worker.run()
    assert told(strategy.act({"t": 0})) == (0, 0)
    return strategy


def test_the_loop_does_not_wait_for_the_worker(worker):
    clock, policy = Clock(), Telling(8)
    strategy = started(worker, policy, clock)
    made = steps(strategy, 3, start=1)  # asked at 2, not answered
    clock.now = 0.35
    worker.run()
    made += steps(strategy, 2, start=4)
    assert made == [(0, 1), (0, 2), (0, 3), (2, 2), (2, 3)]
    assert policy.asked == [0, 2]  # the request of step 4 waits for the worker
    assert (list(strategy.stats.delays), list(strategy.stats.seconds)) == ([2], [0.0, 0.35])
    assert policy.continued[1].delay == 0
    assert strategy.delay.steps == 2


def test_the_observation_is_the_one_of_the_request(worker):
    image = np.zeros((2, 2, 3), np.uint8)
    seen = []

    class Looking(Telling):
        def infer(self, observation, **options):
            seen.append(observation["images"]["top"].copy())
            return super().infer(observation, **options)

    strategy = Prefetch(Looking(4), 2, engine=Threaded(worker))
    strategy.prepare({"t": 0, "images": {"top": image}})
    image[:] = 255  # the camera writes its next frame
    worker.run()
    strategy.act({"t": 0})
    assert seen[0].max() == 0


def test_frames_are_noted_after_the_request_that_came_before_them(worker):
    policy = Watching(8)
    strategy = started(worker, policy)
    steps(strategy, 4, start=1)  # 2 is asked about while 3 and 4 are only seen
    assert policy.frames == [0]
    worker.run()
    assert policy.frames == [0, 1, 2, 3, 4]
    steps(strategy, 1, start=5)
    worker.run()
    assert policy.frames == [0, 1, 2, 3, 4, 5]


def test_what_the_worker_raises_is_raised_in_the_loop_and_asked_again(worker):
    policy = Telling(8)
    strategy = started(worker, policy)
    steps(strategy, 2, start=1)
    good, policy.infer = policy.infer, lambda observation, continuing: 1 / 0
    worker.run()
    with pytest.raises(ZeroDivisionError):
        strategy.act({"t": 3})
    policy.infer = good
    assert steps(strategy, 1, start=3) == [(0, 3)]
    strategy.prepare({"t": 4})
    worker.run()
    assert told(strategy.act({"t": 4})) == (3, 1)


def test_a_frame_that_cannot_be_noted_is_told(worker):
    policy = Watching(8)
    strategy = started(worker, policy)
    policy.observe = lambda observation: 1 / 0
    strategy.act({"t": 1})
    worker.run()
    with pytest.raises(ZeroDivisionError):
        strategy.act({"t": 2})


def test_without_an_action_it_holds_without_waiting(worker):
    strategy = started(worker, Telling(3), hold="last")
    actions = [strategy.act({"t": t})[0] for t in range(1, 6)]
    np.testing.assert_allclose(actions, [0.01, 0.02, 0.02, 0.02, 0.02])
    assert strategy.stats.held == 3


def test_or_waits_for_the_worker():
    begun, may_answer = threading.Event(), threading.Event()

    class Slow(Telling):
        def infer(self, observation, **options):
            if observation["t"]:
                begun.set()
                assert may_answer.wait(60)
            return super().infer(observation, **options)

    strategy = Prefetch(Slow(3), 2)
    made = steps(strategy, 3)
    assert begun.wait(60)
    loop = threading.Thread(target=lambda: made.extend(steps(strategy, 1, start=3)))
    loop.start()
    assert len(made) == 3
    may_answer.set()
    loop.join(60)
    assert made == [(0, 0), (0, 1), (0, 2), (2, 1)]
    assert strategy.stats.waited == 1
    strategy.reset()
    strategy.close()


# -- the watchdog ----------------------------------------------------------------------------------------


def test_an_action_by_the_deadline_is_executed_and_a_late_one_dropped():
    gate = threading.Event()
    gate.set()

    class Gated(Telling):
        def infer(self, observation):
            assert gate.wait(60)
            return super().infer(observation)

    policy = Gated(4)
    dog = Watchdog(RecedingHorizon(policy, 1), 60.0)
    assert steps(dog, 2) == [(0, 0), (1, 0)]
    dog._deadline = 0.0
    gate.clear()
    assert steps(dog, 2, start=2) == [(1, 0), (1, 0)]
    assert (dog.stats.steps, dog.stats.held) == (4, 2)
    gate.set()
    dog._deadline = 60.0
    assert steps(dog, 2, start=4) == [(4, 0), (5, 0)]
    assert policy.asked == [0, 1, 2, 4, 5]  # 3 was not asked: 2 was still under way
    assert dog.stats.held == 2
    dog.reset()
    assert policy.resets == 1
    dog.close()


def test_a_function_holds_from_the_first_step_on(worker):
    dog = Watchdog(RecedingHorizon(Telling(4), 2), 0.0, lambda seen, last: np.full(2, -1.0), executor=worker)
    np.testing.assert_array_equal(dog.act({"t": 0}), [-1, -1])
    worker.run()
    np.testing.assert_array_equal(dog.act({"t": 1}), [-1, -1])
    assert dog.stats.held == 2


def test_what_the_strategy_raises_is_raised_even_late(worker):
    policy = Telling(4)
    policy.infer = lambda observation: 1 / 0
    dog = Watchdog(RecedingHorizon(policy, 2), 0.0, lambda seen, last: np.zeros(2), executor=worker)
    dog.act({"t": 0})
    worker.run()
    with pytest.raises(ZeroDivisionError):
        dog.act({"t": 1})


def test_a_deadline_is_a_number():
    with pytest.raises(ConfigError, match=r"deadline must be a finite number of seconds.*got -1"):
        Watchdog(RecedingHorizon(Telling(4), 2), -1)


# -- policies that do not answer -------------------------------------------------------------------------


class Stalled(Watching):
    """One whose calls after the first do not come back before `go`."""

    def __init__(self, horizon=8, past=3):
        super().__init__(horizon)
        self.past, self.go, self.entered = past, threading.Event(), threading.Event()

    def infer(self, observation, **options):
        if observation["t"]:
            self.entered.set()
            assert self.go.wait(20)
        return super().infer(observation, **options)


@pytest.fixture
def stalled():
    policy = Stalled()
    yield policy
    policy.go.set()


def test_frames_that_cannot_be_kept_in_order_end_the_episode(stalled):
    strategy = Prefetch(stalled, 1, hold="last", engine=Threaded(queue=4))
    steps(strategy, 2)  # the second one asks
    assert stalled.entered.wait(20)
    for t in range(2, 6):
        strategy.act({"t": t})
    with pytest.raises(PastError, match=r"4 frames behind the robot.*Threaded\(queue=...\)"):
        strategy.act({"t": 6})
    for t in (7, 8):
        with pytest.raises(PastError, match=r"This episode is over.*reset\(\) begins another"):
            strategy.act({"t": t})
    stalled.go.set()
    strategy.reset()
    assert (stalled.frames, stalled.resets) == ([0, 1], 1)  # what waited was dropped
    assert steps(strategy, 1) == [(0, 0)]
    strategy.close()


def test_reset_and_close_do_not_wait_for_a_policy_that_does_not_answer(stalled, caplog):
    strategy = Prefetch(stalled, 1, hold="last")
    steps(strategy, 2)
    assert stalled.entered.wait(20)
    for t in range(2, 40):
        strategy.act({"t": t})
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"has not ended within 0\.05 s.*reset\(timeout=...\)"):
        strategy.reset(timeout=0.05)
    with pytest.raises(PastError, match="This episode is over"):
        strategy.act({"t": 40})
    assert stalled.resets == 0
    strategy.close(timeout=0.05)
    assert time.monotonic() - started < 5
    assert "closed while its policy was still at work" in caplog.text
    stalled.go.set()
    assert stalled.frames[:1] == [0]
    assert not {*stalled.frames} - {0, 1}


def test_after_a_failure_the_rest_is_dropped(worker):
    policy = Watching(8)
    strategy = started(worker, policy)
    policy.observe = lambda observation: 1 / 0
    steps(strategy, 4, start=1)  # frame 1, a request, frames 3 and 4
    worker.run()
    assert policy.asked == [0]
    with pytest.raises(ZeroDivisionError):
        strategy.act({"t": 5})
    with pytest.raises(PastError, match=r"missed frames of the past \(division by zero\)"):
        strategy.act({"t": 6})
    del policy.observe
    strategy.reset()
    strategy.prepare({"t": 0})
    worker.run()
    assert steps(strategy, 2) == [(0, 0), (0, 1)]


def test_a_policy_of_the_present_is_shown_no_frames_and_survives_a_failure(worker):
    policy = Watching(8)
    policy.past = 0
    strategy = started(worker, policy)
    steps(strategy, 1, start=1)
    worker.run()
    assert policy.frames == [0]
    good, policy.infer = policy.infer, lambda observation, continuing: 1 / 0
    steps(strategy, 1, start=2)
    worker.run()
    with pytest.raises(ZeroDivisionError):
        strategy.act({"t": 3})
    policy.infer = good
    assert steps(strategy, 1, start=3) == [(0, 3)]


def test_frames_that_wait_are_copies(worker):
    image, seen = np.zeros((2, 2, 3), np.uint8), []
    policy = Watching(8)
    strategy = started(worker, policy)
    policy.observe = lambda observation: seen.append(observation["image"].max())
    strategy.act({"t": 1, "image": image})
    image[:] = 255  # the camera writes its next frame
    worker.run()
    assert seen == [0]


def test_what_has_not_begun_is_not_run_at_close(worker):
    policy = Watching(8)
    strategy = started(worker, policy)
    steps(strategy, 3, start=1)
    strategy.close()
    worker.run()
    assert (policy.frames, policy.asked) == ([0], [0])


@pytest.mark.parametrize("engine", [None, Simulated(0)])
def test_a_closed_strategy_says_so(engine):
    strategy = Prefetch(Telling(4), 2, engine=engine)
    steps(strategy, 1)
    strategy.close()
    strategy.close()
    for call in (lambda: strategy.act({"t": 1}), strategy.reset, lambda: strategy.prepare({"t": 1})):
        with pytest.raises(ConfigError, match="This Prefetch was closed: make another one"):
            call()


def test_a_closed_engine_says_so():
    engine = Threaded()
    engine.close()
    with pytest.raises(ConfigError, match="This engine was closed"):
        engine.submit(Telling(4), Request({"t": 0}))


def test_a_watchdog_does_not_wait_for_ever(stalled, caplog):
    dog = Watchdog(RecedingHorizon(stalled, 1), 0.01, lambda seen, last: np.zeros(2))
    dog.act({"t": 1})
    assert stalled.entered.wait(20)
    with pytest.raises(DeadlineError, match=r"has not ended within 0\.05 s"):
        dog.reset(timeout=0.05)
    dog.close(timeout=0.05)
    assert "closed while its strategy was still at work" in caplog.text
    with pytest.raises(ConfigError, match="This Watchdog was closed"):
        dog.act({"t": 2})
    with pytest.raises(ConfigError, match="This Watchdog was closed"):
        dog.reset()


@pytest.mark.parametrize("timeout", [-1, "soon", None, float("inf")])
def test_a_timeout_is_a_number(timeout):
    strategy = Prefetch(Telling(4), 2)
    for call in (strategy.reset, strategy.close):
        with pytest.raises(ConfigError, match="timeout must be a finite number of seconds"):
            call(timeout=timeout)
    strategy.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Threaded(3), "executor must be a concurrent.futures.Executor, got a int"),
        (lambda: Threaded(clock=3), "clock must be a function"),
        (lambda: Threaded(queue=0), "queue, the frames .* at least 1, got 0"),
        (lambda: Watchdog(3, 1), "Watchdog asks a strategy .* got a int"),
        (lambda: Watchdog(RecedingHorizon(Telling(4), 2), 1, executor=3), "executor must be"),
        (lambda: Prefetch(Telling(4), 2, engine=3), "engine must be one of vla_client.execution.*got a int"),
    ],
)
def test_what_threads_cannot_be_made_of(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
