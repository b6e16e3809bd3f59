"""SIGTERM and SIGHUP end a command as Ctrl-C does: what is half-written is removed on the way out."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise `SystemExit` with status 128 + number; later ones wait.

    A batch system, a container or a closed terminal ends a command by these signals, which would otherwise
    kill it before anything is tidied up. A signal that is ignored (`nohup`) or that the program around
    handles itself stays as it is. Outside the main thread, where Python takes no signals, nothing changes.
    """
    ours = []

    def end(number: int, frame: FrameType | None) -> None:
        for one in ours:
            signal.signal(one, signal.SIG_IGN)  # a second one must not interrupt the tidying up
        raise SystemExit(128 + number)

    try:
        for number in _ENDING:
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, end)
                ours.append(number)
    except ValueError:
        pass  # not the main thread
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
