"""Options about a table of `datasets` (`hf:...`) that several commands share: split, columns, frame rate."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated

import typer

from vla.errors import ConfigError

if TYPE_CHECKING:
    from vla.data.hf.options import TableOptions

ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Of an hf: dataset: the column of the task, episode, frame or timestamp, where it is not called "
        "as usual.",
        metavar="NAME=COLUMN",
    ),
]
SplitOption = Annotated[str | None, typer.Option(help="Of an hf: dataset: which split.", metavar="NAME")]
SubsetOption = Annotated[str | None, typer.Option(help="Of an hf: dataset: which subset.", metavar="NAME")]
FpsOption = Annotated[
    float | None, typer.Option(help="Of an hf: dataset without timestamps: frames per second.")
]


def table_options(
    columns: Sequence[str] | None,
    split: str | None,
    subset: str | None,
    fps: float | None,
    default: "TableOptions | None" = None,
) -> "TableOptions":
    """Return how a table is read: what the options say, and else the default.

    Raises:
        ConfigError: A column is not of the form `NAME=COLUMN`, NAME is unknown, or fps is not positive.
    """
    from vla.data.hf.options import ColumnNames, TableOptions

    options = default or TableOptions()
    known = [field.name for field in fields(ColumnNames)]
    named = {}
    for entry in columns or ():
        name, _, column = entry.partition("=")
        if name not in known or not column:
            raise ConfigError(
                f"--column takes NAME=COLUMN, as in task=instruction, NAME being one of {', '.join(known)}; "
                f"got '{entry}'."
            )
        named[name] = column
    if fps is not None and not 0 < fps < float("inf"):
        raise ConfigError(f"--fps must be positive, got {fps:g}.")
    said = {name: value for name, value in (("split", split), ("subset", subset), ("fps", fps)) if value}
    return replace(options, columns=replace(options.columns, **named), **said)


def check_table(path: str, options: "TableOptions") -> None:
    """Raise `ConfigError` where something is said of a table, but the dataset is not one."""
    from vla.data.hf.options import TableOptions
    from vla.data.hf.source import is_table

    if not is_table(path) and options != TableOptions():
        raise ConfigError(
            f"--column, --split, --subset and --fps are for tables of `datasets` (hf:...); {path} is not one."
        )
