"""The `vla` command, and `python -m vla`, which is the same."""

import os
import signal
import sys
from types import FrameType

from vla.signals import SENT


def run() -> int:
    """Run the command and return its exit status; a signal ends it in one line from its first moment on."""
    signal.signal(signal.SIGINT, _leave)  # nothing is begun yet that would have to be tidied up
    ours = [number for number in SENT if signal.getsignal(number) == signal.SIG_DFL]  # `nohup` ignores one
    for number in ours:
        signal.signal(number, _leave)
    _know_more_than_ascii()
    from vla.cli import main

    for number in ours:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return main()
    except KeyboardInterrupt:  # while it said its last line
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traces out of the interpreter's own end


def _know_more_than_ascii() -> None:
    """Start anew in UTF-8 mode where Python takes file names to be ASCII (LC_ALL=C PYTHONUTF8=0).

    What is printed keeps the encoding that the terminal was said to have.
    """
    if sys.getfilesystemencoding() != "ascii" or os.environ.get("PYTHONUTF8") == "1":
        return
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    environment = {"PYTHONIOENCODING": encoding} | os.environ | {"PYTHONUTF8": "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _leave(number: int, frame: FrameType | None) -> None:
    said = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    os.write(2, f"vla: {said}.\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(run())
