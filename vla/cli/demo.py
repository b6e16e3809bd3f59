"""`vla demo`: from nothing to a policy that works, with a report."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vla.cli.commands import LevelName
from vla.cli.console import console, print_table, progress_bar, quiet_loading
from vla.cli.paths import check_new_folder
from vla.errors import ConfigError

OutputOption = Annotated[Path, typer.Option(help="New folder for the report and everything behind it.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of demonstrations, training and evaluation.")]
AdaptOption = Annotated[
    bool, typer.Option("--adapt", help="Instead: adapt the demo's policy to a second robot.")
]
BaseOption = Annotated[
    Path | None,
    typer.Option(
        help="With --adapt: a demo's folder, whose policy is adapted; without it one is trained first.",
        show_default=False,
    ),
]
DemonstrationsOption = Annotated[
    int | None,
    typer.Option(min=3, help="Episodes of the expert to record.", show_default="1000; 50 with --adapt"),
]
LayoutsOption = Annotated[
    int | None,
    typer.Option(min=3, help="Unseen layouts, each under three instructions.", show_default="200"),
]
LevelOption = Annotated[
    LevelName | None,
    typer.Option(
        help="How to sample in the evaluation: plain, graph, compiled or triton (Real time).",
        show_default="the highest that pays",
    ),
]
StepsOption = Annotated[
    int | None, typer.Option(min=1, help="Training steps.", show_default="the demo's recipe's")
]


def demo(
    output: OutputOption = Path("demo_run"),
    seed: SeedOption = 0,
    adapt: AdaptOption = False,
    base: BaseOption = None,
    demonstrations: DemonstrationsOption = None,
    layouts: LayoutsOption = None,
    steps: StepsOption = None,
    level: LevelOption = None,
) -> None:
    """Record demonstrations, train a small pi-0 on them, evaluate it, and write a report.

    Records a scripted expert as a LeRobot dataset, trains a small policy with flow matching and the same
    network with a mean-squared-error head, evaluates both on unseen layouts, and writes report.html and
    summary.json. Needs no download and no GPU.

    With --adapt, a policy of the demo is taken to another robot, with other units, axes, camera and
    frequency: from 50 demonstrations it is adapted by LoRA and by full fine-tuning, and compared with the
    policy as it was and with one from scratch.

    Example: vla demo --output demo_run, then vla demo --adapt --base demo_run --output adapt_run
    """
    if base is not None and not adapt:
        raise ConfigError("--base is about --adapt, which is not given.")
    check_new_folder(output, "--output", empty=True)
    quiet_loading()
    numbers: Any = {"demonstrations": demonstrations, "layouts": layouts, "steps": steps, "level": level}
    if adapt:
        from vla.demo import run_adapting
        from vla.demo.adapting_report import to_table

        adapted = run_adapting(output, seed, base=base, progress=progress_bar, **numbers)
        print_table(to_table(adapted))
        levels = {way.level for way in adapted.ways.values()}
    else:
        from vla.cli.rollouts import show_success
        from vla.demo import run_demo
        from vla.demo.report import TITLES
        from vla.eval.envs.detour_report import DetourReport

        results = run_demo(output, seed, progress=progress_bar, **numbers)
        levels = set(results.levels.values())
        episodes = {
            f"{TITLES[name]}, side {condition}": rows
            for name, conditions in results.episodes.items()
            for condition, rows in conditions.items()
        }
        show_success(episodes, DetourReport())
    console().print(f"sampled at level {' and '.join(sorted(levels))}")
    console().print(f"report: {output / 'report.html'}\nnumbers: {output / 'summary.json'}")
