"""The robot-ready policy of tests/policies, for this room."""

import pytest

from tests.folders import guard_loading
from tests.policies.conftest import robot_ready

__all__ = ["robot_ready"]


@pytest.fixture(autouse=True)
def _loading_changes_no_file(monkeypatch):
    guard_loading(monkeypatch)
