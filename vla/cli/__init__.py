"""The `vla` command: one file per subcommand, nothing heavy imported before a subcommand runs.

What a user can cause ends as exactly one line on stderr: exit status 2 for wrong usage, 130 for an
interrupt, 128 + its number for SIGTERM and other signals, 141 where nobody reads on, 1 for all else
(`edge.py` has the words). Anything else is a fault of ours and keeps its traceback.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from vla.cli.bench.cost import bench
from vla.cli.bench.execution import execution
from vla.cli.bench.learning import draws, features
from vla.cli.bench.serving import serving
from vla.cli.commands import Command, Group, Interrupted, NobodyReads, UsageError, usage_in_one_line
from vla.cli.convert import convert
from vla.cli.demo import demo
from vla.cli.edge import SYSTEM_ERRORS, in_one_line
from vla.cli.eval import evaluate
from vla.cli.info.command import info
from vla.cli.logs import QuietOption, VerboseOption, ask_before_command, with_verbosity
from vla.cli.merge import merge
from vla.cli.serve.command import serve
from vla.cli.sim.record import record, replay
from vla.cli.stats import stats
from vla.cli.train import recipes, train
from vla.signals import EndedBySignal, ended_by_signals

INTERRUPTED, NOBODY_READS = 130, 141  # as a shell says of SIGINT and SIGPIPE

app = typer.Typer(
    name="vla",
    cls=Group,
    help="pi-0-style vision-language-action policies: train one, trust it, run it on a robot.",
    no_args_is_help=True,
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
    "recipes": recipes,
    "stats": stats,
    "info": info,
    "convert": convert,
    "merge": merge,
    "eval": evaluate,
    "record": record,
    "replay": replay,
    "serve": serve,
}.items():
    app.command(_name, cls=Command, help=_help(_function))(with_verbosity(_function))

_bench = typer.Typer(cls=Group)
for _name, _function in {
    "draws": draws,
    "features": features,
    "execution": execution,
    "serve": serving,
}.items():
    _bench.command(_name, cls=Command, help=_help(_function))(with_verbosity(_function))
app.add_typer(
    _bench, name="bench", callback=with_verbosity(bench), invoke_without_command=True, help=_help(bench)
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import vla

        typer.echo(f"vla {vla.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    ask_before_command(quiet, verbose)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    _write_any_text()
    try:
        with ended_by_signals():
            status: object = app(
                args=None if argv is None else list(argv), prog_name="vla", standalone_mode=False
            )
        if sys.stdout is not None:
            sys.stdout.flush()
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            _say(usage_in_one_line(error))
        return 2
    except (KeyboardInterrupt, Interrupted, typer.Abort) as error:
        _say("aborted." if isinstance(error, typer.Abort) else "interrupted.")
        return INTERRUPTED
    except (BrokenPipeError, NobodyReads):
        return _close_pipe()
    except SYSTEM_ERRORS as error:
        said = in_one_line(error)
        if said is None:
            raise
        _say(said)
        return 1
    except SystemExit as end:
        status = end.code
        if isinstance(end, EndedBySignal):
            _say(f"ended by {end.name}.")
    return status if isinstance(status, int) else int(status is not None)


def _say(line: str) -> None:
    typer.echo(f"vla: {line}", err=True)


def _close_pipe() -> int:
    """Let nothing be written any more to a reader that has gone (`vla info x | head -1`)."""
    with open(os.devnull, "wb") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            try:
                os.dup2(nowhere.fileno(), stream.fileno())
            except (OSError, ValueError):  # not a file: nothing to close
                continue
    return NOBODY_READS


def _write_any_text() -> None:
    """Write what the terminal's encoding lacks, half characters of a path included, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
