"""From nothing to a policy that works, with a report (`vla demo`)."""

from vla.demo.run import run_demo

__all__ = ["run_demo"]
