"""The `vla` command, and `python -m vla`, which is the same."""

import os
import signal
import sys
from types import FrameType


def run() -> int:
    """Run the command and return its exit status; Ctrl-C ends it in one line from its first moment on."""
    signal.signal(signal.SIGINT, _leave)  # nothing is begun yet that would have to be tidied up
    _know_more_than_ascii()
    from vla.cli import main

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
    os.write(2, b"vla: interrupted.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(run())
