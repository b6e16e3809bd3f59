"""`vla bench execution`: strategies of execution under latency, in closed loop."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vla.cli.bench.learning import JsonOption
from vla.cli.console import console, quiet_loading, stages
from vla.cli.paths import check_file, check_new_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vla.bench.execution import ExecutionReport, Row

ActionsOption = Annotated[
    str,
    typer.Option(
        help="What the policy learns: positions, relative (positions less the state) or displacements."
    ),
]
PrefixOption = Annotated[int, typer.Option(help="Longest prefix that the second policy is trained with.")]
WorkOption = Annotated[
    Path | None, typer.Option(help="Folder for recordings and runs; what is there is used again.")
]


def execution(
    actions: ActionsOption = "positions",
    latency_ms: Annotated[float, typer.Option(min=0, help="Milliseconds that a chunk takes.")] = 200.0,
    execute: Annotated[int, typer.Option(min=1, help="Control steps between two requests.")] = 6,
    layouts: Annotated[int, typer.Option(min=2, help="Layouts that every strategy meets.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of either policy.")] = 4000,
    max_prefix: PrefixOption = 6,
    demonstrations: Annotated[int, typer.Option(min=3, help="Episodes to record.")] = 1000,
    real_time: Annotated[
        int, typer.Option(min=0, help="Layouts met in real time and over the network as well.")
    ] = 0,
    work: WorkOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of recordings, training and noise.")] = 0,
    json: JsonOption = None,
) -> None:
    """Let strategies of execution meet the same layouts of Detour at 20 Hz, where a chunk takes time.

    Records demonstrations, trains a policy as usual and one with known first steps (training-time real-time
    chunking), and runs every strategy in simulated time: standing still meanwhile, asynchronous prefetch,
    temporal ensembling, real-time chunking by guidance and by prefix. Success is compared layout by layout
    with the same policy without latency. Most of the time goes into training both policies.

    Example: vla bench execution --actions relative --work execution_work
    """
    if json is not None:
        check_file(json, "--json")
    from vla.bench.execution import ExecutionOptions, run_execution
    from vla.bench.execution.work import is_work_folder

    if work is not None and not is_work_folder(work):
        check_new_folder(work, "--work", empty=True)

    options = ExecutionOptions(
        actions=actions,
        latency=latency_ms / 1e3,
        execute=execute,
        layouts=layouts,
        steps=steps,
        max_prefix=max_prefix,
        demonstrations=demonstrations,
        real_time=real_time,
        work=work,
        seed=seed,
    )
    quiet_loading()
    with stages() as say:
        report = run_execution(options, say)
    _show(report)
    if json is not None:
        report.save(json)


def _show(report: "ExecutionReport") -> None:
    out = console()
    out.print(report.machine)
    out.print(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    out.print(_table("strategy", report.rows))
    if report.real_time:
        out.print(_table("in real time, over the network", report.real_time))
        late = ", ".join(f"{name} {share:.1%}" for name, share in report.late.items())
        out.print(f"control steps that began late by more than a fifth of a period: {late}")
    out.print(
        "lost: per cent of layouts, against the same policy without latency, less those won. cup: share that "
        "touched it. s: seconds to the target. jump: mean distance of consecutive actions across a seam over "
        "the median within chunks; 95th: its 95th percentile."
    )
    for one in report.findings:
        wanted = f"{'>=' if one.at_least else '<='} {one.bound:.2f}"
        out.print(f"{one.name}: {one.value:.3f} (aim {wanted}{'' if one.met else ', missed'})")


def _table(title: str, rows: "Sequence[Row]") -> Any:
    from rich.table import Table

    table = Table(title)
    for heading in ("success", "lost (95 %, paired)", "cup", "s", "jump", "95th"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, *_cells(row))
    return table


def _cells(row: "Row") -> list[Any]:
    return [
        f"{row.success:.1%}",
        "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * one for one in (row.loss, *row.loss_interval))),
        f"{row.collided:.1%}",
        f"{row.seconds:.2f}",
        f"{row.jump:.2f}",
        f"{row.jump_p95:.2f}",
    ]
