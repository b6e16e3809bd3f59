"""`vla demo`: from nothing to a policy that works, with a report."""

from pathlib import Path
from typing import Annotated

import typer

from vla.cli.console import console, progress_bar, quiet_loading

OutputOption = Annotated[Path, typer.Option(help="New folder for the report and everything behind it.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of demonstrations, training and evaluation.")]
DemonstrationsOption = Annotated[
    int | None, typer.Option(min=3, help="Episodes of the expert to record.", show_default="1000")
]
LayoutsOption = Annotated[
    int | None,
    typer.Option(min=3, help="Unseen layouts, each under three instructions.", show_default="200"),
]
StepsOption = Annotated[
    int | None, typer.Option(min=1, help="Training steps.", show_default="the demo's recipe's")
]


def demo(
    output: OutputOption = Path("demo_run"),
    seed: SeedOption = 0,
    demonstrations: DemonstrationsOption = None,
    layouts: LayoutsOption = None,
    steps: StepsOption = None,
) -> None:
    """Record demonstrations, train a small pi-0 on them, evaluate it, and write a report.

    Records a scripted expert as a LeRobot dataset, trains a small policy with flow matching and the same
    network with a mean-squared-error head, evaluates both on unseen layouts, and writes report.html and
    summary.json. Needs no download and no GPU.

    Example: vla demo --output demo_run
    """
    from vla.cli.rollouts import show_success
    from vla.demo import run_demo
    from vla.demo.report import TITLES

    quiet_loading()
    results = run_demo(
        output, seed, demonstrations=demonstrations, layouts=layouts, steps=steps, progress=progress_bar
    )
    episodes = {
        f"{TITLES[name]}, side {condition}": rows
        for name, conditions in results.episodes.items()
        for condition, rows in conditions.items()
    }
    show_success(episodes)
    console().print(f"report: {output / 'report.html'}\nnumbers: {output / 'summary.json'}")
