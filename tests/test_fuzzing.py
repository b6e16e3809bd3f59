"""A minute of fuzzing: every test of the suite whose name says "fuzz", with new examples."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_another_minute_finds_nothing():
    begun = time.monotonic()
    factor = int(os.environ.get("VLA_FUZZ", "1"))
    while time.monotonic() - begun < 60:
        factor *= 4
        command = [
            sys.executable,
            "-m",
            "pytest",
            "tests",
            "-k",
            "fuzz",
            "--timeout=0",
            "-p",
            "no:cacheprovider",
        ]
        environment = {**os.environ, "VLA_FUZZ": str(factor)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-8000:]
