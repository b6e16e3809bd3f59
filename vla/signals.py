"""Ctrl-C, SIGTERM and their like end a command: what is half-written is removed on the way out."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TIDYING_UP = 10.0
"""Seconds after a signal in which another one does not interrupt the tidying up."""

_WAIT = 0.01
"""Seconds after which it is seen again whether an import is done."""

ENDING = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGUSR1: signal.SIG_DFL,
    signal.SIGUSR2: signal.SIG_DFL,
}
"""The signals, and what Python does with them where nobody has asked for anything else.

The last two are what batch systems are often told to send before the time is up.
"""

_handlers: list[Any] = []
"""The handlers that are in place."""


class EndedBySignal(SystemExit):
    """A signal other than Ctrl-C has ended what ran; exit status 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block SIGINT raises `KeyboardInterrupt`, the others `EndedBySignal`.

    A batch system, a container or a closed terminal ends a command by these signals, which would otherwise
    kill it before anything is tidied up. Those that follow within `TIDYING_UP` seconds do nothing. A signal
    that is ignored (`nohup`) or that the program around handles itself stays as it is. Outside the main
    thread, where Python takes no signals, nothing changes.

    During an import each of them waits until that is done: another library's initialisation would turn the
    exception into one of its own, or abort the process.
    """
    waiting: list[threading.Timer] = []
    ours: list[signal.Signals] = []
    ended: float | None = None

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ended
        if _importing(frame):
            waiting.append(_again_soon(number))
            return
        now = time.monotonic()
        if ended is not None and now - ended < TIDYING_UP:
            return
        ended = now
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise EndedBySignal(number)

    _handlers.append(end)
    try:
        for number, default in ENDING.items():
            if signal.getsignal(number) == default:
                signal.signal(number, end)
                ours.append(number)
    except ValueError:
        pass  # not the main thread
    try:
        yield
    finally:
        for one in waiting:
            one.cancel()
        for number in ours:
            signal.signal(number, ENDING[number])
        _handlers.remove(end)


@contextmanager
def held_off(say: Callable[[], None]) -> Iterator[None]:
    """Within the block the same signals do nothing but call a function; the last one has its effect after it.

    For what must not be cut short, and does not take long. A signal that the program around handles itself
    stays as it is. Outside the main thread, where Python takes no signals, nothing changes.

    Args:
        say: Called for each, in between any two instructions of the main thread.
    """
    before: dict[int, Any] = {}
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        say()

    try:
        for number in ENDING:
            if is_free(number):
                before[number] = signal.signal(number, note)
    except ValueError:
        pass  # not the main thread
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[-1])


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Within the block the same signals end the process at once, without a word.

    For a wait inside a library that does not come back to Python, such as that for the other processes of a
    launch: a handler of Python's would not be called until it is over. Nothing may be half-written there. A
    signal that the program around handles itself stays as it is.
    """
    before: dict[int, Any] = {}
    try:
        for number in ENDING:
            if is_free(number):
                before[number] = signal.signal(number, signal.SIG_DFL)
    except ValueError:
        pass  # not the main thread
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_free(number: int) -> bool:
    """Return whether nobody but this module handles one of the signals, nor is it ignored."""
    handler = signal.getsignal(number)
    return handler == ENDING[signal.Signals(number)] or handler in _handlers


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _again_soon(number: int) -> threading.Timer:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(_WAIT, signal.pthread_kill, (main, number))
    timer.daemon = True
    timer.start()
    return timer
