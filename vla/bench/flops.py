"""Floating-point operations of a piece of work, counted as PyTorch runs it."""

from vla.bench.timing import Work
from vla.nn.flop_counter import flop_counter


def count_flops(work: Work) -> int:
    """Run `work` once and return its floating-point operations, backward passes included."""
    with flop_counter() as counter:
        work()
    return counter.get_total_flops()
