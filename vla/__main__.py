"""The `vla` command, and `python -m vla`, which is the same."""

import os
import signal
import sys
from types import FrameType

from vla.signals import ENDING


def run() -> int:
    """Run the command and return its exit status; a signal ends it in one line from its first moment on."""
    early = [one for one, default in ENDING.items() if signal.getsignal(one) == default]
    for number in early:
        signal.signal(number, _leave)  # nothing is begun yet that would have to be tidied up
    _open_closed_streams()
    _know_more_than_ascii()
    from vla.cli import main

    for number in early:
        signal.signal(number, ENDING[number])
    try:
        return main()
    except KeyboardInterrupt:  # while it said its last line
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traces out of the interpreter's own end


def _open_closed_streams() -> None:
    """Let what is printed to a closed stream (`>&-`) vanish, and let no other file take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115


def _know_more_than_ascii() -> None:
    """Start anew in UTF-8 mode where Python takes file names to be ASCII (LC_ALL=C PYTHONUTF8=0).

    What is printed keeps the encoding that the terminal was said to have.
    """
    if sys.getfilesystemencoding() != "ascii" or os.environ.get("PYTHONUTF8") == "1":
        return
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    environment = {"PYTHONIOENCODING": encoding} | os.environ | {"PYTHONUTF8": "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _ended_by(number: int) -> str:
    return "interrupted." if number == signal.SIGINT else f"ended by {signal.Signals(number).name}."


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"vla: {_ended_by(number)}\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(run())
