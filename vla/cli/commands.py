"""Commands and groups that read their arguments strictly: what would be guessed at elsewhere is refused."""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from vla.cli.edge import in_one_line
from vla.errors import ConfigError, VlaError, did_you_mean
from vla.paths import expanded

UsageError: Any = typer.BadParameter.__base__
"""Wrong usage of any kind; typer has no public name for it."""

LevelName = Literal["plain", "graph", "compiled", "triton"]
"""Levels of sampling, `vla.fast.levels.LEVELS`; importing those takes a second."""

QuantizeName = Literal["4bit", "8bit"]
"""How linear layers may be stored, `vla.adapters.quantize.Kind`."""

_LARGEST = 2**31 - 1
_SCIENTIFIC = re.compile(r"[+-]?[\d_]+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


_WORLDS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""What launchers call the number of processes; the first of them that is set is believed."""
_LAUNCHED = "train"
"""The command that several processes may run together."""

_COMPLETION = {"install_completion", "show_completion"}
"""Options of typer's that end the command at once, so that nothing after them would be looked at."""


class Command(TyperCommand):
    """A command whose options come once each, are not empty, and are numbers where numbers are wanted."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _read_alike(self)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: D102
        return _parse_strictly(self, super().parse_args, ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, in one process unless it is one for several."""
        if self.name != _LAUNCHED:
            refuse_several_processes(ctx)
        return super().invoke(ctx)


class Interrupted(BaseException):
    """Ctrl-C on its way through typer, which would make a bare exit status of it."""


class NobodyReads(BaseException):
    """A closed pipe on its way through typer, which would exit with 1."""


class Group(TyperGroup):
    """A group of commands, as strict."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what typer would end without a word is told by who called."""
        if ctx.parent is not None:  # `vla bench`
            refuse_several_processes(ctx)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error
        except BrokenPipeError as error:
            raise NobodyReads from error
        except EOFError as error:
            raise VlaError(in_one_line(error)) from error

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _read_alike(self)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: D102
        return _parse_strictly(self, super().parse_args, ctx, args)


def refuse_several_processes(context: Any) -> None:
    """Raise `ConfigError` where a launcher started several processes, each of which would do all of it."""
    said = next((name for name in _WORLDS if os.environ.get(name, "").strip()), None)
    number = os.environ[said].strip() if said else "1"
    if number.isdecimal() and int(number) > 1:
        raise ConfigError(
            f"`{context.command_path}` runs in one process, but a launcher started {number} "
            f"({said}={number}), each of which would do all of it, into the same place: start it without "
            "`torchrun` or `accelerate launch`, which are for `vla train`. If this process is alone, say so "
            "with WORLD_SIZE=1 in its environment."
        )


def given_options(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Return those of some options that stand on the command line, as they are spelled there by default.

    Args:
        context: The command's.
        names: Names of its parameters in Python.
    """
    sources = {name: context.get_parameter_source(name) for name in names}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    return [one.opts[0] for one in context.command.params if one.name in given]


def _read_alike(command: Any) -> None:
    """Let paths and whole numbers be read as in a recipe: `~`, `$NAME`, 1e3; before typer looks at them.

    What is a path or a number is taken from the function, which every version of typer has alike.
    """
    hints = signature(command.callback).parameters if command.callback else {}
    for parameter in command.params:
        kinds = _kinds(hints[parameter.name].annotation) if parameter.name in hints else set()
        read = expanded if Path in kinds else _in_digits if int in kinds else None
        if read is not None:
            parameter.process_value = _after(read, parameter.process_value)


def _kinds(annotation: Any) -> set[Any]:
    inside = [_kinds(one) for one in get_args(annotation)]
    return {annotation} if not inside else set().union(*inside)


def _after(read: Callable[[Any], Any], process: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def processed(ctx: Any, value: Any) -> Any:
        return process(ctx, str(read(value)) if isinstance(value, str) and value else value)

    return processed


def _in_digits(text: str) -> int:
    """Return a whole number, which may be spelled `1_000`, `1e3` or `1000.0`."""
    try:
        return int(text)
    except ValueError:
        number = float(text) if _SCIENTIFIC.fullmatch(text.strip()) else math.nan
    if not number.is_integer() or abs(number) >= 2**53:
        raise typer.BadParameter(f"'{text}' is not a whole number, such as 10000 or 1e4.")
    return int(number)


def _parse_strictly(command: Any, parse: Any, ctx: Any, args: list[str]) -> list[str]:
    """Parse as typer does, and refuse what it would take without a word, where the line is complete.

    Raises:
        UsageError: An option is given twice or without a value, a number is not finite or too large.
    """
    if ctx.resilient_parsing or (not args and command.no_args_is_help):
        return parse(ctx, args)
    given, after, order = command.make_parser(ctx).parse_args(args=list(args))
    for name in _COMPLETION & given.keys():
        if given[name] and after:
            raise UsageError(
                f"--{name.replace('_', '-')} takes no value, got '{after[0]}': it is for the shell that "
                "calls it.",
                ctx,
            )
    for parameter, times in Counter(order).items():
        if times > 1 and parameter.param_type_name == "option" and not _repeatable(parameter):
            raise UsageError(f"{_name(parameter)} is given {times} times; give it once.", ctx)
    for parameter in command.params:
        _refuse_empty(parameter, given, ctx)
    rest = parse(ctx, args)
    for name, value in ctx.params.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{_named(command, name)} takes a finite number, got {value}.", ctx)
        if isinstance(value, int) and abs(value) > _LARGEST:
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
    if key := _recipe_key(error, context):
        said, hint = re.split(r" \(Possible| Did you mean", said)[0], f".{key}"
    elif "Did you mean" in said or "ossible option" in said:
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
    return did_you_mean(name, _options(context))


def _options(context: Any) -> list[str]:
    return [one for parameter in context.command.params for one in parameter.opts]


def _recipe_key(error: Any, context: Any) -> str:
    """Return how a recipe's key is given, where an option stands for one and the command takes overrides."""
    option = getattr(error, "option_name", None)
    takes_overrides = any(one.name == "overrides" for one in context.command.params)
    if option is None or not takes_overrides or did_you_mean(option, _options(context)):
        return ""
    from vla.train.recipe_file import known_keys
    from vla.train.recipe_names import OURS

    name = option.lstrip("-").replace("-", "_")
    if name in ("config", "config_path", "recipe"):
        return " The recipe is named by its path alone: vla train recipe.yaml."
    below = [one for one in known_keys() if one == name or one.endswith(f".{name}")]
    key = next(iter(below), None) or OURS.get(name) or OURS.get(name.rpartition(".")[2])
    return f" Keys of the recipe are given without dashes, {key}=VALUE." if key else ""
