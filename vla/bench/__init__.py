"""What a policy costs: times, operations, memory, and the same of another implementation."""

from vla.bench.options import BenchOptions
from vla.bench.report import Report
from vla.bench.run import run_bench

__all__ = ["BenchOptions", "Report", "run_bench"]
