"""How strategies of execution cope with chunks that take time, in closed loop."""

from vla.bench.execution.options import ExecutionOptions
from vla.bench.execution.report import ExecutionReport, Row
from vla.bench.execution.run import run_execution

__all__ = ["ExecutionOptions", "ExecutionReport", "Row", "run_execution"]
