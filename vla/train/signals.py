"""Stopping a run from outside: finish the step, save, leave."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Within the block the first SIGTERM, SIGINT or SIGHUP only sets `requested`; a second acts as usual.

    SIGHUP stays ignored where it is (`nohup`). Outside the main thread, where Python takes no signals, it
    stays False.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        try:
            for number in _SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        except ValueError:
            self._before = {}
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


@contextmanager
def signals_held() -> Iterator[None]:
    """Deliver SIGTERM, SIGINT and SIGHUP only after the block.

    For fetching a batch: worker processes started meanwhile inherit the mask, so that a signal sent to the
    whole process group (Ctrl-C, a batch system) does not kill them under the step that is to be finished.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
