"""What the subcommands share: the console, the progress bar, and a look at what a path holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vla.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

    from vla.eval.report import TableBlock
    from vla.types import ProgressCallback


def console(stderr: bool = False) -> "Console":
    """Return a rich console; results go to stdout, progress to stderr."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=not stderr)


def print_rows(title: str, rows: "Mapping[str, str]") -> None:
    """Print names and values as a table of two columns."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    console().print(table)


def print_table(block: "TableBlock") -> None:
    """Print a table of a report."""
    from rich.table import Table

    table = Table(title=block.heading, title_justify="left", caption=block.note, caption_justify="left")
    for index, name in enumerate(block.header):
        table.add_column(name, justify="right" if index else "left")
    for row in block.rows:
        table.add_row(*row)
    console().print(table)


@contextmanager
def progress_bar(description: str) -> "Iterator[ProgressCallback]":
    """Show a progress bar on stderr; call what is yielded with (done, total)."""
    with _progress() as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def byte_bar(description: str) -> "Iterator[ProgressCallback]":
    """Show a progress bar for bytes on stderr; call what is yielded with (done, total)."""
    from rich.progress import DownloadColumn, TransferSpeedColumn

    with _progress(DownloadColumn(), TransferSpeedColumn()) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _progress(*columns: "ProgressColumn") -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    err = console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *(columns or (MofNCompleteColumn(),)),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def quiet_loading() -> None:
    """Keep transformers' own bars off the screen; those of hub downloads stay."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    enable_progress_bars()


def parse_flags(text: str, option: str) -> tuple[bool, ...]:
    """Read per-dimension flags, `"1,1,0"` or `"true,true,false"`.

    Raises:
        ConfigError: An entry is neither a yes nor a no.
    """
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    entries = [entry.strip().lower() for entry in text.split(",")]
    wrong = [entry for entry in entries if entry not in words]
    if wrong:
        raise ConfigError(f"{option} takes flags such as 1,1,0, one per action dimension; got '{wrong[0]}'.")
    return tuple(words[entry] for entry in entries)


def parse_numbers(text: str, option: str) -> list[int]:
    """Read a list of numbers and ranges, `"0,2,5-7"` -> [0, 2, 5, 6, 7].

    Raises:
        ConfigError: An entry is neither a number nor a range.
    """
    numbers: list[int] = []
    for entry in text.split(","):
        first, dash, last = entry.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(f"{option} takes numbers and ranges such as 0,2,5-7; got '{entry.strip()}'.")
        entries = range(int(first), int(last if dash else first) + 1)
        if not entries:
            raise ConfigError(f"{option}: the range {entry.strip()} runs backwards.")
        numbers.extend(entries)
    return numbers


def checkpoint_folder(path: str) -> Path:
    """Return the folder to read a policy from: a training run's folder stands for its last checkpoint."""
    last = Path(path) / "checkpoints" / "last"
    return last if last.is_dir() else Path(path)


def refuse_existing(path: Path, option: str = "--output") -> None:
    """Raise `ConfigError` if `path` is there already, before any work is done."""
    if path.exists():
        raise ConfigError(f"{path} is already there; give another {option} or remove it.")
