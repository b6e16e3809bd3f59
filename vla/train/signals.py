"""Stopping a run from outside: finish the step, save, leave."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

import torch

from vla.signals import is_free

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""The last two are what a batch system may be told to send before the time is up."""


class StopRequest:
    """Within the block the first of `SIGNALS` is only noted; a second one acts as usual.

    SIGHUP stays ignored where it is (`nohup`), and SIGUSR1 and SIGUSR2 stay with a program that handles them
    itself. Outside the main thread, where Python takes no signals, none
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
                if _is_noted(number):
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


def _is_noted(number: signal.Signals) -> bool:
    if number in (signal.SIGUSR1, signal.SIGUSR2):
        return is_free(number)
    return number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN


class RunStop(StopRequest):
    """A request to any of a run's processes; the main one speaks.

    Args:
        accelerator: The run's `accelerate.Accelerator`.
    """

    def __init__(self, accelerator: Any) -> None:
        super().__init__(speaks=accelerator.is_main_process)
        self._accelerator = accelerator
        # torchrun's, which `accelerate launch` starts several processes by; None of a process of no launch
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def anywhere(self) -> int | None:
        """Return a signal that came in any process, so that all stop at the same step; a collective.

        A launcher that is gone (SIGUSR1, say, ends it alone) counts as SIGTERM: nobody could reach the
        processes any more, which would train on unseen.
        """
        if self.number is None and self._launcher not in (None, os.getppid()):
            self.number = signal.SIGTERM
            logger.warning(
                "The launcher of this process has ended: finishing the step and saving a checkpoint."
            )
        if self._accelerator.num_processes == 1:
            return self.number
        came = torch.tensor([float(self.number == one) for one in SIGNALS], device=self._accelerator.device)
        total = self._accelerator.reduce(came, "sum").tolist()
        return next((int(one) for one, processes in zip(SIGNALS, total, strict=True) if processes), None)


@contextmanager
def stoppable_run(accelerator: Any, lost: Callable[[], str]) -> Iterator[RunStop]:
    """Take the first signal as a request to save and stop; say what a second one loses.

    Args:
        accelerator: The run's `accelerate.Accelerator`.
        lost: Returns the sentence.
    """
    with RunStop(accelerator) as stop:
        try:
            yield stop
        except (KeyboardInterrupt, SystemExit):
            if stop.is_aborted and accelerator.is_main_process:
                logger.warning(lost())
            raise


@contextmanager
def signals_held() -> Iterator[None]:
    """Deliver `SIGNALS` only after the block.

    For fetching a batch: worker processes started meanwhile inherit the mask, so that a signal sent to the
    whole process group (Ctrl-C, a batch system) does not kill them under the step that is to be finished.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
