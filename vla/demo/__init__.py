"""From nothing to a policy that works, with a report (`vla demo`), and on to a second robot (`--adapt`)."""

from vla.demo.adapting import run_adapting
from vla.demo.run import run_demo

__all__ = ["run_adapting", "run_demo"]
