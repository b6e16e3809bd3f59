"""`vla demo`: from nothing to a policy that works, with a report."""

from pathlib import Path
from typing import Annotated

import typer

from vla.cli.console import console, progress_bar, quiet_loading


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the report and everything behind it.")] = Path(
        "demo_run"
    ),
    seed: Annotated[int, typer.Option(help="Seed of demonstrations, training and evaluation.")] = 0,
) -> None:
    """Record demonstrations, train a small pi-0 on them, evaluate it, and write a report.

    Records a scripted expert as a LeRobot dataset, trains a small policy with flow matching and the same
    network with a mean-squared-error head, evaluates both on unseen layouts, and writes report.html and
    summary.json. Needs no download and no GPU.

    Example: vla demo --output demo_run
    """
    from vla.demo import run_demo

    quiet_loading()
    run_demo(output, seed, progress=progress_bar)
    console().print(f"report: {output / 'report.html'}\nnumbers: {output / 'summary.json'}")
