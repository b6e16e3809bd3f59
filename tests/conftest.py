"""Fixtures that several rooms share."""

import os
import signal
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network; a missing repository fails at once

if not torch.cuda.is_available():  # Triton, as it is imported, is told to run its kernels on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell leaves it for what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of golden outputs and real data, where there is one; tests that need it skip otherwise.

    It lies next to the checkout under the name `shared`, or where VLA_SHARED says.
    """
    folder = Path(os.environ.get("VLA_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("no folder of golden outputs next to the checkout (VLA_SHARED)")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests an hour, unless they say otherwise: the usual limit is for those of seconds."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))
