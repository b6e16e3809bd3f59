"""`vla bench serve`: a server under load, and what it adds to a call in process."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vla.cli.console import console, quiet_loading, stages
from vla.cli.eval import TOKEN_VARIABLE
from vla.cli.paths import check_file

if TYPE_CHECKING:
    from vla.bench.serving import ServingReport

CheckpointArgument = Annotated[
    str | None,
    typer.Argument(
        help="Policy folder, run folder, hub id or short name; a tiny pi-0 with three cameras by default.",
        metavar="CHECKPOINT",
        show_default=False,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(help="A server that runs already, instead.", metavar="URL", show_default=False),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        help=f"Its token; {TOKEN_VARIABLE} of the environment by default.",
        metavar="TOKEN",
        show_default=False,
    ),
]
LevelOption = Annotated[
    str | None, typer.Option(help="How to sample, as in vla serve.", show_default="the highest that pays")
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of each server, and of the calls in process.")
]


def serving(
    checkpoint: CheckpointArgument = None,
    url: UrlOption = None,
    token: TokenOption = None,
    clients: Annotated[int, typer.Option(min=1, help="Connections at once.")] = 32,
    seconds: Annotated[float, typer.Option(min=0.1, max=86400, help="Seconds of load.")] = 60.0,
    rounds: Annotated[int, typer.Option(min=1, help="Slices of the load; servers take turns.")] = 4,
    max_batch: Annotated[int, typer.Option(min=1, help="Most observations in one pass.")] = 16,
    calls: Annotated[int, typer.Option(min=1, help="Single calls of each kind.")] = 100,
    size: Annotated[int, typer.Option(min=1, help="Height and width of the images, pixels.")] = 224,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default=False)] = None,
    level: LevelOption = None,
    threads: ThreadsOption = None,
    json: Annotated[Path | None, typer.Option(help="Write everything to this file as well.")] = None,
) -> None:
    """Put a policy server under load, check every reply, and time what it adds to a call in process.

    Serves the checkpoint twice, as it is and with --max-batch 1, in processes of their own; many clients
    of this process ask the two in turn. Single calls are timed in turn with calls in process and with a bare
    WebSocket echo of the same frame. With --url, a server that runs already is measured alone.

    Example: vla bench serve runs/first --clients 32 --seconds 60

    Example: vla bench serve --url ws://gpu-machine:8000
    """
    if json is not None:
        check_file(json, "--json")
    from vla.bench.serving import ServingOptions, run_serving

    if url is not None:
        token = token or os.environ.get(TOKEN_VARIABLE)
    options = ServingOptions(
        checkpoint=checkpoint, url=url, token=token, clients=clients, seconds=seconds, rounds=rounds,
        max_batch=max_batch, calls=calls, size=size, device=device, level=level, threads=threads,
    )  # fmt: skip
    quiet_loading()
    with stages() as say:
        report = run_serving(options, say)
    _show(report)
    if json is not None:
        report.save(json)


def _show(report: "ServingReport") -> None:
    out = console()
    out.print(report.machine)
    out.print(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    served = report.server
    out.print(
        f"{served['checkpoint']}, level '{served['level']}', {report.settings['clients']} clients, "
        f"requests of {report.frame_bytes:,} bytes"
    )
    out.print(_loads(report))
    for row in report.loads:
        wrong = ", ".join(f"{count} {kind} ({row.said[kind]})" for kind, count in row.faults.items())
        out.print(f"{row.name}: {wrong or 'no error, no reply lost, crossed or wrong'}")
    worst = max(row.largest_difference for row in report.loads)
    out.print(f"checked: {report.checked}; largest difference {worst:.1e}")
    if report.memory is not None:
        memory = report.memory
        out.print(
            f"memory of the server: {memory.first / 1e6:,.1f} MB in the second quarter of the load, "
            f"{memory.last / 1e6:,.1f} MB in the last ({memory.growth:+.1%})"
        )
    out.print(_calls(report))
    out.print(_ratios(report))


def _loads(report: "ServingReport") -> Any:
    from rich.table import Table

    table = Table()
    table.add_column("server", no_wrap=True)
    for heading in ("s", "replies", "per s", "p50 ms", "p95", "p99", "batch"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.loads:
        table.add_row(
            row.name,
            f"{row.seconds:.1f}",
            f"{row.requests:,}",
            f"{row.per_second:,.1f}",
            *(f"{one:,.1f}" for one in (row.p50, row.p95, row.p99)),
            f"{row.mean_batch:.1f}",
        )
    return table


def _calls(report: "ServingReport") -> Any:
    from rich.table import Table

    table = Table("one call, in turn")
    for heading in ("median", "quartiles", "calls"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, one in report.calls.items():
        table.add_row(
            name,
            f"{1e3 * one.median:,.2f} ms",
            f"{1e3 * one.lower:,.2f}-{1e3 * one.upper:,.2f}",
            str(one.rounds),
        )
    return table


def _ratios(report: "ServingReport") -> Any:
    from rich.table import Table

    table = Table("ratio of medians")
    table.add_column("", justify="right")
    for ratio in report.ratios:
        table.add_row(ratio.name, f"{ratio.value:.2f}")
    return table
