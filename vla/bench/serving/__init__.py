"""A policy server under load, and what it adds to a call in process; measured from one asyncio process."""

from vla.bench.serving.options import ServingOptions
from vla.bench.serving.report import ServingReport
from vla.bench.serving.run import run_serving

__all__ = ["ServingOptions", "ServingReport", "run_serving"]
