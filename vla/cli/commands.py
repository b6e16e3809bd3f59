"""Commands and groups that read their arguments strictly: what would be guessed at elsewhere is refused."""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from vla.errors import did_you_mean

UsageError: Any = typer.BadParameter.__base__
"""Wrong usage of any kind; typer has no public name for it."""

_LARGEST = 2**31 - 1


class Command(TyperCommand):
    """A command whose options come once each, are not empty, and are numbers where numbers are wanted."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: D102
        return _parse_strictly(self, super().parse_args, ctx, args)


class Group(TyperGroup):
    """A group of commands, as strict."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: D102
        return _parse_strictly(self, super().parse_args, ctx, args)


def given_options(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Return those of some options that stand on the command line, as they are spelled there by default.

    Args:
        context: The command's.
        names: Names of its parameters in Python.
    """
    sources = {name: context.get_parameter_source(name) for name in names}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    return [one.opts[0] for one in context.command.params if one.name in given]


def _parse_strictly(command: Any, parse: Any, ctx: Any, args: list[str]) -> list[str]:
    """Parse as typer does, refuse what it would take without a word, and replace `~` in paths.

    Raises:
        UsageError: An option is given twice or without a value, a number is not finite or too large.
    """
    if not args and command.no_args_is_help:
        return parse(ctx, args)
    given, _, order = command.make_parser(ctx).parse_args(args=list(args))
    for parameter, times in Counter(order).items():
        if times > 1 and parameter.param_type_name == "option" and not _repeatable(parameter):
            raise UsageError(f"{_name(parameter)} is given {times} times; give it once.", ctx)
    for parameter in command.params:
        _refuse_empty(parameter, given, ctx)
    rest = parse(ctx, args)
    for name, value in ctx.params.items():
        if isinstance(value, Path):
            ctx.params[name] = Path(os.path.expanduser(value))
        elif isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{_named(command, name)} takes a finite number, got {value}.", ctx)
        elif isinstance(value, int) and abs(value) > _LARGEST:
            raise UsageError(f"{_named(command, name)} {value} is too large a number.", ctx)
    return rest


def _repeatable(parameter: Any) -> bool:
    return parameter.multiple or (parameter.is_flag and not parameter.secondary_opts)


def _refuse_empty(parameter: Any, given: Mapping[str, Any], ctx: Any) -> None:
    value = given.get(parameter.name)
    values = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(one, str) and not one.strip() for one in values):
        raise UsageError(f"{_name(parameter)} is empty; give a value or leave it out.", ctx)


def _name(parameter: Any) -> str:
    """Return what the user calls it."""
    return parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar or parameter.name


def _named(command: Any, name: str) -> str:
    return next((_name(one) for one in command.params if one.name == name), name)


def usage_in_one_line(error: Any) -> str:
    """Return what was wrong with the usage, and where help is; the nearest option or command is named."""
    context = error.ctx
    said = " ".join(error.format_message().split()).rstrip(".?")
    if context is None:
        return f"{said}."
    if "Did you mean" in said or "ossible option" in said:
        hint = "?" if "Did you mean" in said else "."
    else:
        hint = "." + _nearest(error, context)
    return f"{said}{hint} See `{context.command_path} --help`."


def _nearest(error: Any, context: Any) -> str:
    name = getattr(error, "option_name", None)
    commands = getattr(context.command, "commands", {})
    if (
        name is None
        and commands
        and (unknown := re.search(r"[Nn]o such command '(.*)'", error.format_message()))
    ):
        return did_you_mean(unknown[1], commands)
    if name is None:
        return ""
    known = [one for parameter in context.command.params for one in parameter.opts]
    return did_you_mean(name, known)
