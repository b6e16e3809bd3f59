"""The `vla` command: one file per subcommand, nothing heavy imported before a subcommand runs.

What a user can cause (`vla.errors.VlaError`) ends as exactly one line on stderr and exit status 1; wrong
usage exits with 2, an interrupt with 130, SIGTERM with 143 and SIGHUP with 129. Anything else is a fault of
ours and keeps its traceback.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from vla.cli.bench import bench
from vla.cli.bench_learning import draws, features
from vla.cli.convert import convert
from vla.cli.demo import demo
from vla.cli.eval import evaluate
from vla.cli.info.command import info
from vla.cli.merge import merge
from vla.cli.stats import stats
from vla.cli.train import train
from vla.errors import VlaError
from vla.signals import ended_by_signals

app = typer.Typer(
    name="vla",
    help="pi-0-style vision-language-action policies: train one, trust it, run it on a robot.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _help(function: Callable[..., None]) -> str:
    """Return a docstring with each paragraph on one line, which the console then wraps to its width."""
    return "\n\n".join(" ".join(part.split()) for part in (function.__doc__ or "").split("\n\n"))


for _name, _function in {
    "demo": demo,
    "train": train,
    "stats": stats,
    "info": info,
    "convert": convert,
    "merge": merge,
    "eval": evaluate,
}.items():
    app.command(_name, help=_help(_function))(_function)

_bench = typer.Typer()
for _name, _function in {"draws": draws, "features": features}.items():
    _bench.command(_name, help=_help(_function))(_function)
app.add_typer(_bench, name="bench", callback=bench, invoke_without_command=True, help=_help(bench))


def _print_version(wanted: bool) -> None:
    if wanted:
        import vla

        typer.echo(f"vla {vla.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more on the way.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    if not verbose:  # it warns of a kernel for 4-bit products on CPUs as soon as an adapter is loaded
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    try:
        with ended_by_signals():
            app(args=None if argv is None else list(argv), prog_name="vla")
    except VlaError as error:
        typer.echo(f"vla: {' '.join(str(error).split())}", err=True)
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
