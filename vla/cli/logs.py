"""What is said on the way, on stderr: the same `--quiet` and `--verbose` on every command; and JSON alone.

By default reports of progress, which checkpoint a run's folder stands for, and warnings; `--verbose` all that
vla and other libraries say, and the trace behind an error; `--quiet` warnings and errors. Results go to
stdout always.
"""

import inspect
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from contextvars import ContextVar
from functools import wraps
from typing import Annotated, Any

import typer

from vla.errors import ConfigError
from vla.terminal import is_watched, quietly

QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress: warnings, errors and results alone.")
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more on the way, and show the trace of an error.")
]

_REPORTING = ("vla.terminal", "vla.train.monitor.metrics", "vla.weights.run_folder")
"""Modules whose lines are for everybody, not only for who asks for more."""

_before_command: ContextVar[tuple[bool, bool]] = ContextVar("before_command", default=(False, False))
_documents: ContextVar[list[str] | None] = ContextVar("documents", default=None)


def with_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes `--quiet` and `--verbose` besides its own options."""

    @wraps(command)
    def run(*args: Any, quiet: bool = False, verbose: bool = False, **options: Any) -> None:
        asked = _before_command.get()
        quiet, verbose = quiet or asked[0], verbose or asked[1]
        if quiet and verbose:
            raise ConfigError("--quiet and --verbose contradict each other; leave out one of the two.")
        with _saying(quiet, verbose):
            command(*args, **options)

    signature, kind = inspect.signature(command), inspect.Parameter.KEYWORD_ONLY
    added = {"quiet": QuietOption, "verbose": VerboseOption}
    parameters = [
        inspect.Parameter(name, kind, default=False, annotation=hint) for name, hint in added.items()
    ]
    changed: Any = run
    changed.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *parameters])
    changed.__annotations__ = {**command.__annotations__, **added}
    return run


def ask_before_command(quiet: bool, verbose: bool) -> None:
    """Remember what stands before the command's name: `vla --quiet train` is `vla train --quiet`."""
    _before_command.set((quiet, verbose))


@contextmanager
def _saying(quiet: bool, verbose: bool) -> Iterator[None]:
    levels = {
        "": logging.INFO if verbose else logging.WARNING,
        "vla": logging.DEBUG if verbose else logging.WARNING,
    }
    if not verbose:
        levels |= dict.fromkeys(_REPORTING, logging.WARNING if quiet else logging.INFO)
    if not verbose:  # it warns of a kernel for 4-bit products on CPUs as soon as an adapter is loaded
        levels["bitsandbytes"] = logging.ERROR
    loggers = {logging.getLogger(name): level for name, level in levels.items()}
    before = {one: one.level for one in loggers}
    root, handler = logging.getLogger(), _Stderr()
    handler.setFormatter(_Format())
    root.addHandler(handler)
    for one, level in loggers.items():
        one.setLevel(level)
    deepspeed = logging.getLogger("DeepSpeed")
    if not verbose:
        deepspeed.addFilter(_says_something)
    try:
        with ExitStack() as stack:
            stack.enter_context(quietly(quiet))
            if quiet or not is_watched():
                stack.enter_context(_no_bars_of_others())
            if verbose:
                stack.push(_show_trace)
            yield
    finally:
        root.removeHandler(handler)
        deepspeed.removeFilter(_says_something)
        for one, level in before.items():
            one.setLevel(level)


def _says_something(record: logging.LogRecord) -> bool:
    """Leave out that a machine has no accelerator, which DeepSpeed prints to stdout when it is imported."""
    return not record.getMessage().startswith("Setting accelerator to CPU")


@contextmanager
def _no_bars_of_others() -> Iterator[None]:
    """Let downloads and tables move no bar, which would fill a log with control characters."""
    from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
    from huggingface_hub.utils import disable_progress_bars

    if HF_HUB_DISABLE_PROGRESS_BARS is None:  # nothing was asked for by the environment
        disable_progress_bars()
    name = "HF_DATASETS_DISABLE_PROGRESS_BARS"  # read where `datasets` is imported, which takes its time
    is_ours = name not in os.environ
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if is_ours:
            os.environ.pop(name, None)


def _show_trace(kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
    """Print where an error was raised; it stays what it is."""
    if kind is not None and not issubclass(kind, typer.Exit):
        traceback.print_exception(kind, error, trace)


class _Stderr(logging.Handler):
    """Writes to what stderr is at that moment, above a bar that moves there."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None:
            return
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except OSError:  # nobody reads it any more
            return


class _Format(logging.Formatter):
    """What vla says as it is, warnings called so, other libraries named."""

    def format(self, record: logging.LogRecord) -> str:
        said = super().format(record)
        if not record.name.startswith("vla"):
            said = f"{record.name}: {said}"
        return f"{record.levelname.lower()}: {said}" if record.levelno >= logging.WARNING else said


@contextmanager
def json_alone(wanted: bool) -> Iterator[None]:
    """Let nothing reach stdout within the block: what `print_json` is given comes when it ends well.

    Other libraries, compiled ones too, write to stderr in the meantime. A handler that a library makes while
    it is imported keeps the stream that it found then, so that one is not stdout either.

    Args:
        wanted: False changes nothing.
    """
    if not wanted:
        yield
        return
    documents: list[str] = []
    token = _documents.set(documents)
    try:
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(sys.stderr))
            stack.enter_context(_descriptor_redirected())
            yield
    finally:
        _documents.reset(token)
    for text in documents:
        typer.echo(text)


def print_json(values: Any) -> None:
    """Print a JSON document on stdout; inside `json_alone`, once the block has ended.

    What JSON has no word for, NaN and infinity, is null.
    """
    text, documents = json.dumps(_finite(values), indent=2, allow_nan=False), _documents.get()
    if documents is None:
        typer.echo(text)
    else:
        documents.append(text)


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


@contextmanager
def _descriptor_redirected() -> Iterator[None]:
    """Let the process' own stdout, which compiled code writes to, be its stderr."""
    if sys.__stdout__ is not None and not sys.__stdout__.closed:
        sys.__stdout__.flush()
    try:
        kept = os.dup(1)
    except OSError:  # closed
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        if sys.__stdout__ is not None and not sys.__stdout__.closed:
            sys.__stdout__.flush()
        os.dup2(kept, 1)
        os.close(kept)
