"""Threads that do not keep Python from ending, and that a forked process lacks."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import threading
import time

import pytest
from fake_policies import Telling, steps

from vla_client.chunks import RecedingHorizon
from vla_client.errors import ConfigError
from vla_client.execution import Prefetch, Threaded, Watchdog, worker
from vla_client.execution.worker import Worker


class Stalled(Telling):
    """One whose calls after the first end only when it is closed."""

    def __init__(self):
        super().__init__(4)
        self.closed, self.entered = threading.Event(), threading.Event()

    def infer(self, observation, **options):
        if observation["t"]:
            self.entered.set()
            assert self.closed.wait(20)
        return super().infer(observation, **options)

    def close(self):
        self.closed.set()


@pytest.mark.parametrize(
    "make",
    [
        lambda policy: Prefetch(policy, 1, hold="last"),
        lambda policy: Watchdog(RecedingHorizon(policy, 1), 0.01),
    ],
)
def test_python_ends_without_waiting_for_a_server_that_does_not_answer(make):
    strategy = make(policy := Stalled())
    steps(strategy, 2)
    assert policy.entered.wait(20)
    threads = [one for one in threading.enumerate() if one.name.startswith("vla-")]
    assert threads
    assert all(one.daemon for one in threads)  # the others are waited for without an end
    started = time.monotonic()
    worker._end()  # what Python calls at its end
    assert time.monotonic() - started < worker.EXIT_SECONDS
    assert policy.closed.is_set()
    strategy.close()


def test_what_nothing_cuts_short_is_waited_for_a_while(monkeypatch):
    monkeypatch.setattr(worker, "EXIT_SECONDS", 0.05)
    go, begun, made = threading.Event(), threading.Event(), Worker("vla-test")
    under_way = made.submit(lambda: begun.set() or go.wait(20))
    waits = made.submit(int)
    assert begun.wait(20)
    worker._end()
    assert waits.cancelled()
    assert not under_way.done()
    go.set()
    assert under_way.result(20) is True
    made.shutdown()


def test_a_worker_is_an_executor():
    made = Worker("vla-test")
    assert made.submit(divmod, 7, 2).result(20) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        made.submit(lambda: 1 / 0).result(20)
    made.shutdown()
    with pytest.raises(RuntimeError, match="was shut down"):
        made.submit(int)
    Worker("vla-test").shutdown()  # one that never began


def test_the_thread_ends_with_its_owner():
    made = Worker("vla-test")
    made.submit(int).result(20)
    thread = made._thread
    del made
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_a_forked_process_is_told_at_once(monkeypatch):
    engines = [Threaded(), Threaded(concurrent.futures.ThreadPoolExecutor(1))]
    strategies = [Prefetch(Telling(4), 2, engine=one) for one in engines]
    strategies.append(Watchdog(RecedingHorizon(Telling(4), 2), 60.0))
    for one in strategies:
        one.act({"t": 0})
    here = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    for one in strategies:
        with pytest.raises(ConfigError, match=f"made in process {here}, .*forked from it.*in each process"):
            one.act({"t": 1})
    monkeypatch.undo()
    for one in strategies:
        one.close()
