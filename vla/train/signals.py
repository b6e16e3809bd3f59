"""Stopping a run from outside: finish the step, save, leave."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Within the block the first SIGTERM, SIGINT or SIGHUP is only noted; a second one acts as usual.

    SIGHUP stays ignored where it is (`nohup`). Outside the main thread, where Python takes no signals, none
    is noted.

    Args:
        speaks: Whether this process says what the signal does; of several, one is enough.

    Attributes:
        number: The first signal; None while there is none.
        is_aborted: Whether a second one came.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.number: int | None = None
        self.is_aborted = False
        self._speaks = speaks
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        try:
            for number in SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        except ValueError:
            self._before = {}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            if self._speaks:
                again = "press Ctrl-C" if number == signal.SIGINT else "send it"
                logger.warning(
                    "%s: finishing the step and saving a checkpoint; %s again to abort without saving.",
                    signal.Signals(number).name,
                    again,
                )
            return
        self.is_aborted = True
        usual = self._before.get(number)
        if callable(usual):
            usual(number, frame)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)


@contextmanager
def signals_held() -> Iterator[None]:
    """Deliver SIGTERM, SIGINT and SIGHUP only after the block.

    For fetching a batch: worker processes started meanwhile inherit the mask, so that a signal sent to the
    whole process group (Ctrl-C, a batch system) does not kill them under the step that is to be finished.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
