"""Servers in processes of their own: started, watched, and asked to end."""

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from vla.errors import ServerError

START_SECONDS = 600.0
"""Time for loading and warming up."""

END_SECONDS = 40.0

_ADDRESS = re.compile(r"serving at (wss?://\S+)")


class ServerProcess:
    """A program that prints `serving at ws://...` once it can be asked.

    Args:
        words: Its command line after the interpreter.
        threads: CPU threads; None: PyTorch's choice.

    Attributes:
        url: Where it listens; known after `wait`.
        token: What it asks for.

    Raises:
        ServerError: From `wait`: it ended instead, or took too long.
    """

    def __init__(self, words: Sequence[str], threads: int | None = None) -> None:
        self.url = ""
        self.token = secrets.token_urlsafe(16)
        environment = {**os.environ, "VLA_SERVE_TOKEN": self.token, "PYTHONUNBUFFERED": "1"}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        # A file rather than a pipe: nobody has to read it while the server works.
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed by close
        self._process = subprocess.Popen(
            [sys.executable, *words], stdout=self._said, stderr=subprocess.STDOUT, env=environment
        )

    def wait(self) -> "ServerProcess":
        """Wait until it can be asked."""
        end = time.monotonic() + START_SECONDS
        while (found := _ADDRESS.search(self.said())) is None:
            if self._process.poll() is not None:
                lines = self.said().strip().splitlines()
                raise ServerError(f"The server did not start: {lines[-1] if lines else 'it said nothing'}")
            if time.monotonic() > end:
                raise ServerError(f"The server did not start within {START_SECONDS:.0f} s.")
            time.sleep(0.05)
        self.url = found[1]
        return self

    def said(self) -> str:
        """Return what it has printed."""
        return os.pread(self._said.fileno(), 2**20, 0).decode("utf-8", "replace")

    def resident(self) -> int | None:
        """Return the bytes that it holds in memory; None where the system does not say."""
        path = Path(f"/proc/{self._process.pid}/statm")
        try:
            return int(path.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError, ValueError):
            return None

    def close(self) -> int:
        """Ask it to end, and return its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._said.close()

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def policy_server(
    checkpoint: str, max_batch: int, clients: int, threads: int | None, level: str | None, device: str | None
) -> ServerProcess:
    """Start `vla serve` at a free port, for so many clients."""
    words = ["-m", "vla", "serve", checkpoint, "--port", "0", "--max-batch", str(max_batch)]
    words += ["--max-connections", str(clients + 8), "--queue", str(max(128, 2 * clients))]
    words += ["--level", level] if level else []
    words += ["--device", device] if device else []
    return ServerProcess(words, threads)


def echo_server() -> ServerProcess:
    """Start the bare echo (`echo.py`) at a free port."""
    script = Path(__file__).with_name("echo.py")  # as a script: with nothing of vla it is there at once
    return ServerProcess(["-P", str(script)])
