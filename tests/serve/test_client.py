"""`vla.serve.client` is the robot's distribution under the library's name."""

import subprocess
import sys

import vla_client
from vla_client import errors as client_errors

import vla.errors
import vla.serve.client


def test_names_are_the_distributions_own():
    assert vla.serve.client.Client is vla_client.Client
    assert vla.serve.client.__all__ == sorted(vla.serve.client.__all__)
    for name in ("CodingError", "DeadlineError", "ServerError", "ServerLostError"):
        assert getattr(vla.errors, name) is getattr(client_errors, name)
        assert name in vla.errors.__all__


def test_the_robots_computer_needs_no_torch_for_it():
    code = "import sys, vla.serve.client; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_whoever_wants_the_errors_alone_loads_neither_numpy_nor_websockets():
    code = (
        "import sys, vla_client.errors; sys.exit(bool({'numpy', 'websockets', 'msgpack'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
