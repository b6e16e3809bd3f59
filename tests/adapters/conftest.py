"""The robot-ready policy of tests/policies, for this room."""

from tests.policies.conftest import robot_ready

__all__ = ["robot_ready"]
