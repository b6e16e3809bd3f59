"""Environments on the command line: which one, what it is made with, and how many processes draw it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vla.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from vla.eval.scene import Scene

EnvOptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--env-option",
        help="KEY=VALUE (YAML) that the environment is made with, once per key: size=96.",
        metavar="KEY=VALUE",
    ),
]


RandomiseOption = Annotated[
    Path | None,
    typer.Option(help="YAML file with ranges of cameras, light, colours and masses.", metavar="FILE"),
]


def scene(env: str, options: Sequence[str] | None, randomise: Path | None = None) -> "Scene":
    """Return the environment of that name, made with what `--env-option` and `--randomise` say.

    Raises:
        ConfigError: An option is not KEY=VALUE, or is given twice; or the file cannot be read.
    """
    from vla.eval.envs.randomisation import read_randomisation
    from vla.eval.scene import Scene

    arguments = env_options(options)
    if randomise is not None:
        if "randomise" in arguments:
            raise ConfigError("--randomise and --env-option randomise=... say the same: give one of them.")
        arguments["randomise"] = read_randomisation(randomise)
    return Scene(env, arguments)


def env_options(options: Sequence[str] | None) -> dict[str, Any]:
    """Return what `--env-option` says, by key; see `scene`."""
    import yaml

    from vla.plain_yaml import load_yaml

    arguments: dict[str, Any] = {}
    for one in options or ():
        key, sign, value = one.partition("=")
        if not sign or not key.isidentifier():
            raise ConfigError(f"--env-option takes KEY=VALUE, such as size=96; got '{one}'.")
        if key in arguments:
            raise ConfigError(f"--env-option {key} is given twice.")
        try:
            arguments[key] = load_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--env-option {one} cannot be read as YAML: {error}") from error
    return arguments


def conditions_of(
    made_with: "Scene", names: Sequence[str] | None, option: str = "--condition"
) -> dict[str, dict[str, Any]]:
    """Return the reset options of an environment's conditions, by name: all, or those that were asked for.

    Args:
        made_with: The environment.
        names: Those that were asked for.
        option: What they are called where they were.

    Raises:
        ConfigError: There is no such condition.
    """
    from vla.eval.envs import environment_report

    known = environment_report(made_with.env).conditions_with(made_with.arguments)
    for name in names or ():
        if not known:
            raise ConfigError(
                f"The environment {made_with.env} has no conditions to choose from; leave {option} out."
            )
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(
                f"{option} is one of {', '.join(known)} for {made_with.env}; got '{name}'.{hint}"
            )
    return {name: dict(known[name]) for name in names or known}
