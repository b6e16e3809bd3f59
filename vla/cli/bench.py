"""`vla bench`: what a policy costs on this machine."""

from typing import Annotated

import typer


def bench(
    config: Annotated[str, typer.Option(help="The policy: a folder name in vla/policies.")] = "pi0",
) -> None:
    """Time a policy's prefix, velocity step, full sample and training step on this machine.

    Example: vla bench --config pi0 --dtype bfloat16
    """
    from vla.bench import run_bench

    run_bench(config=config)
