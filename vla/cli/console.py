"""What the subcommands share: the console, progress, and lists in options."""

from contextlib import contextmanager
from typing import TYPE_CHECKING

from vla.errors import ConfigError
from vla.terminal import ProgressLines, is_quiet, is_watched, plain_console, progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from rich.console import Console

    from vla.eval.report import TableBlock
    from vla.types import ProgressCallback

_MOST_NUMBERS = 10_000_000
_LONGEST_RANGE = 40


def console(stderr: bool = False) -> "Console":
    """Return a rich console; results go to stdout, progress to stderr."""
    return plain_console(stderr)


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


def progress_bar(description: str) -> "AbstractContextManager[ProgressCallback]":
    """Show progress on stderr, see `vla.terminal`; call what is entered with (done, total)."""
    return progress(description)


def byte_bar(description: str) -> "AbstractContextManager[ProgressCallback]":
    """Show progress in bytes on stderr; call what is entered with (done, total)."""
    from rich.progress import DownloadColumn, TransferSpeedColumn

    return progress(description, DownloadColumn(), TransferSpeedColumn())


@contextmanager
def stages() -> "Iterator[Callable[[str], None]]":
    """Show what is being done on stderr: by turns on a terminal, in a log a line for what comes late."""
    if is_quiet():
        yield lambda stage: None
    elif is_watched():
        with console(stderr=True).status("starting") as status:
            yield status.update
    else:
        lines = ProgressLines("")
        yield lines.stage


def quiet_loading() -> None:
    """Keep transformers' own bars off the screen; those of hub downloads stay where somebody watches."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    if is_watched() and not is_quiet():
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
        if len(entry) > _LONGEST_RANGE:
            raise ConfigError(f"{option}: '{entry[:20]}...' is too large a number.")
        first, dash, last = entry.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"{option} takes numbers and ranges such as 0,2,5-7; got '{entry.strip()}'.")
        entries = range(int(first), int(last if dash else first) + 1)
        if not entries:
            raise ConfigError(f"{option}: the range {entry.strip()} runs backwards.")
        if len(numbers) + len(entries) > _MOST_NUMBERS:
            raise ConfigError(f"{option} {text[:40]} names more than {_MOST_NUMBERS:,} numbers.")
        numbers.extend(entries)
    return numbers
