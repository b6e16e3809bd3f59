"""Programs of the tests that start processes of their own, and ports for them to meet at."""

import json
import os
import socket
import subprocess
import sys


def free_port():
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def report_of(module, **environment):
    """Run a module of the tests, which is told a port, and return the JSON that its last line holds."""
    ran = subprocess.run(
        [sys.executable, "-m", module, free_port()],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])
