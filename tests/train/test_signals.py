import os
import signal
import threading
from types import SimpleNamespace

import pytest

from vla.signals import ended_by_signals
from vla.train.signals import RunStop, StopRequest, signals_held


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_a_request_the_second_acts(number, caplog):
    heard = []
    outer = signal.signal(number, lambda *_: heard.append(number))
    try:
        with StopRequest() as stop:
            assert stop.number is None
            os.kill(os.getpid(), number)
            assert stop.number == number
            assert (heard, stop.is_aborted) == ([], False)
            again = {signal.SIGINT: "press Ctrl-C again", signal.SIGTERM: "send it again"}[number]
            assert (
                f"{number.name}: finishing the step and saving a checkpoint; {again} to abort" in caplog.text
            )
            os.kill(os.getpid(), number)
            assert (heard, stop.is_aborted) == ([number], True)
        with StopRequest(speaks=False):
            pass
        os.kill(os.getpid(), number)
        assert heard == [number, number]
    finally:
        signal.signal(number, outer)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_the_second_ends_where_nothing_else_would(number, raised):
    outer = signal.signal(number, signal.SIG_IGN)

    def twice():
        with StopRequest(speaks=False):
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    try:
        with pytest.raises(raised):
            twice()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, outer)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_what_batch_systems_send_is_a_request_unless_it_is_handled_elsewhere(number, caplog):
    with ended_by_signals():
        with StopRequest() as stop:
            signal.raise_signal(number)
            assert stop.number == number
            assert f"{number.name}: finishing the step and saving a checkpoint" in caplog.text
            with pytest.raises(SystemExit, match=str(128 + number)):
                signal.raise_signal(number)
        heard = []
        usual = signal.signal(number, lambda *_: heard.append(number))
        with StopRequest() as stop:
            signal.raise_signal(number)
        signal.signal(number, usual)
    if number == signal.SIGHUP:  # as SIGTERM, it is taken whoever handled it
        assert (stop.number, heard) == (number, [])
    else:
        assert (stop.number, heard) == (None, [number])
    assert signal.getsignal(number) == signal.SIG_DFL


def test_held_signals_arrive_afterwards():
    with StopRequest() as stop:
        with signals_held():
            signal.raise_signal(signal.SIGTERM)  # to this thread; os.kill lets the system choose one
            assert stop.number is None
        assert stop.number == signal.SIGTERM


def test_other_threads_take_no_signals():
    seen = []

    def enter():
        with StopRequest() as stop:
            seen.append(stop.number)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None]


@pytest.mark.parametrize("launched", [True, False])
def test_a_launcher_that_is_gone_stops_its_processes(launched, monkeypatch, caplog):
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    else:
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with RunStop(SimpleNamespace(is_main_process=True, num_processes=1)) as stop:
        assert stop.anywhere() is None
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert stop.anywhere() == (signal.SIGTERM if launched else None)
        assert stop.anywhere() == stop.number
    assert caplog.text.count("The launcher of this process has ended") == launched
