import os
import signal
import threading

import pytest

from vla.train.signals import StopRequest, signals_held


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_a_request_the_second_acts(number):
    heard = []
    outer = signal.signal(number, lambda *_: heard.append(number))
    try:
        with StopRequest() as stop:
            assert not stop.requested
            os.kill(os.getpid(), number)
            assert stop.requested
            assert heard == []
            os.kill(os.getpid(), number)
            assert heard == [number]
        with StopRequest():
            pass
        os.kill(os.getpid(), number)
        assert heard == [number, number]
    finally:
        signal.signal(number, outer)


def test_held_signals_arrive_afterwards():
    with StopRequest() as stop:
        with signals_held():
            signal.raise_signal(signal.SIGTERM)  # to this thread; os.kill lets the system choose one
            assert not stop.requested
        assert stop.requested


def test_other_threads_take_no_signals():
    seen = []

    def enter():
        with StopRequest() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]
