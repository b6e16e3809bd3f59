"""`vla bench draws` and `vla bench features`: what saves compute in training, measured by training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vla.cli.console import console, quiet_loading, stages
from vla.cli.paths import check_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from vla.bench.learning import LearningReport
    from vla.bench.learning.report import Finding

DatasetOption = Annotated[
    Path | None, typer.Option(help="The demonstrations/ of a `vla demo`; recorded anew where not given.")
]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; PyTorch's choice where not given.")]
ClockOption = Annotated[
    str, typer.Option(help="wall, or process: CPU time, which busy neighbours do not disturb (1 thread).")
]
JsonOption = Annotated[Path | None, typer.Option(help="Write everything to this file as well.")]


def draws(
    draws: Annotated[int, typer.Option(help="Noise draws per observation to compare with one.")] = 4,
    shape: Annotated[
        str,
        typer.Option(
            help="pi0: a network with a costly prefix, as pi-0's; demo: the demo's, where it is cheap."
        ),
    ] = "pi0",
    steps: Annotated[int, typer.Option(help="Steps with one draw.")] = 2000,
    share: Annotated[float, typer.Option(help="Steps with several draws, as a share of them.")] = 0.56,
    batch: Annotated[
        int | None, typer.Option(help="Observations per step of both; the shape's where not given.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the run with several draws; the recipe's where not given.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Repetitions, each with another seed.")] = 1,
    dataset: DatasetOption = None,
    threads: ThreadsOption = None,
    clock: ClockOption = "wall",
    json: JsonOption = None,
) -> None:
    """Train the demo's recipe with one noise draw per observation and with several, and compare the time.

    Each is a whole run with a warm-up and a cosine of its own. Compared is when each first has the held-out
    loss that one draw ends with: seconds of steps, without set-up, validation and saving. Takes three to
    four minutes a seed.

    Example: vla bench draws --draws 4
    """
    _check_json(json)
    from vla.bench.learning import DrawsOptions, run_draws

    options = DrawsOptions(
        dataset=dataset,
        threads=threads,
        clock=clock,
        shape=shape,
        draws=draws,
        steps=steps,
        share=share,
        batch=batch,
        learning_rate=learning_rate,
        seeds=seeds,
    )
    _run(lambda say: run_draws(options, say), json)


def features(
    preset: Annotated[str, typer.Option(help="full, wide, middle or tiny.")] = "middle",
    freeze: Annotated[str, typer.Option(help="What is frozen: vision, or vlm.")] = "vlm",
    batch: Annotated[int, typer.Option(help="Observations per step.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps of each run.")] = 8,
    episodes: Annotated[int, typer.Option(help="Episodes whose features are kept.")] = 8,
    repeats: Annotated[int, typer.Option(help="Runs without and with kept features, in turn.")] = 2,
    dataset: DatasetOption = None,
    threads: ThreadsOption = None,
    clock: ClockOption = "wall",
    json: JsonOption = None,
) -> None:
    """Train with frozen parts, with what they give kept on disk and without, and compare.

    Same losses, more samples per second; and how long it takes to keep the features in the first place.

    Example: vla bench features --preset middle
    """
    _check_json(json)
    from vla.bench.learning import FeaturesOptions, run_features

    options = FeaturesOptions(
        dataset=dataset,
        threads=threads,
        clock=clock,
        preset=None if preset == "full" else preset,
        freeze=freeze,
        batch=batch,
        steps=steps,
        episodes=episodes,
        repeats=repeats,
    )
    _run(lambda say: run_features(options, say), json)


def _check_json(json: Path | None) -> None:
    if json is not None:
        check_file(json, "--json")


def _run(measure: "Callable[[Callable[[str], None]], LearningReport]", json: Path | None) -> None:
    quiet_loading()
    with stages() as say:
        report = measure(say)
    _show(report)
    if json is not None:
        report.save(json)


def _show(report: "LearningReport") -> None:
    out = console()
    settings = report.settings
    out.print(f"{report.machine}; {settings['threads']} threads, {settings['clock']} clock")
    out.print(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    out.print(_runs_table(report))
    out.print(_findings_table(report))


def _runs_table(report: "LearningReport") -> Any:
    from rich.table import Table

    losses = list(report.runs[0].points[-1].losses) if report.runs[0].points else []
    table = Table("training")
    for heading in ("seed", "steps", "batch", "ms per step", *(loss.replace("_", " ") for loss in losses)):
        table.add_column(heading, justify="right")
    for run in report.runs:
        median, lower, upper = (
            f"{seconds * 1e3:,.0f}"
            for seconds in (run.step_seconds.median, run.step_seconds.lower, run.step_seconds.upper)
        )
        table.add_row(
            run.name,
            str(run.seed),
            str(run.steps),
            str(run.batch),
            f"{median} ({lower}-{upper})",
            *(f"{run.points[-1].losses[loss]:.4f}" for loss in losses),
        )
    return table


def _findings_table(report: "LearningReport") -> Any:
    from rich.table import Table

    table = Table("")
    for heading in ("measured", "aim"):
        table.add_column(heading, justify="right", no_wrap=True)
    for finding in report.findings:
        table.add_row(finding.name, _measured(finding), finding.aim)
    return table


def _measured(finding: "Finding") -> str:
    """Return "0.58", of several repetitions "0.58 (0.55-0.61)"; "not reached" where one has no number."""
    if finding.median is None:
        missing = sum(value is None for value in finding.values)
        return (
            "not reached"
            if len(finding.values) == 1
            else f"not reached by {missing} of {len(finding.values)}"
        )
    found = [value for value in finding.values if value is not None]
    text = _number(finding.median)
    return text if len(found) == 1 else f"{text} ({_number(min(found))}-{_number(max(found))})"


def _number(value: float) -> str:
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.01 else f"{value:.1e}"
