"""A policy's pipelines by name, in a checkpoint's folder.

    pipeline.json    that of a policy of one robot, whose name is None; statistics and tokenizer next to it

or, where one policy was trained on several robots,

    pipelines/
      aloha/         a whole pipeline: pipeline.json, statistics, tokenizer
      widowx/

A folder has one or the other: one robot's statistics cannot be mistaken for another's.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from vla.errors import ConfigError, did_you_mean
from vla.paths import is_hidden
from vla.transforms.base import PIPELINE_FILE, Pipeline
from vla.transforms.statistics import STATISTICS_FILE

PIPELINES_FOLDER = "pipelines"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def check_name(name: str) -> str:
    """Return a pipeline's name.

    Raises:
        ConfigError: It cannot be the name of a folder.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot name a pipeline: use letters, digits, '_', '-' and '.', and begin with a "
            "letter or a digit."
        )
    return name


def pipeline_names(folder: Path) -> list[str]:
    """Return the names of the pipelines in a checkpoint's folder; none where it has a single one."""
    below = folder / PIPELINES_FOLDER
    inside = below.iterdir() if below.is_dir() else ()
    return sorted(path.name for path in inside if path.is_dir() and not is_hidden(path))


def write_pipelines(pipelines: Mapping[str | None, Pipeline], folder: Path) -> None:
    """Write pipelines into an existing folder that has none.

    Args:
        pipelines: By name; under None that of a policy of one robot.
        folder: The checkpoint's.

    Raises:
        ConfigError: A name cannot be a folder's, or there is one robot's pipeline among those of several.
    """
    if None in pipelines and len(pipelines) > 1:
        named = ", ".join(name for name in pipelines if name is not None)
        raise ConfigError(f"A policy has one robot's pipeline or named ones ({named}), not both.")
    for name, pipeline in pipelines.items():
        own = folder
        if name is not None:
            own = folder / PIPELINES_FOLDER / check_name(name)
            own.mkdir(parents=True)
        pipeline.save(own)


def read_pipelines(folder: Path) -> dict[str | None, Pipeline]:
    """Return the pipelines that `write_pipelines` wrote, by name; none where there are none.

    Raises:
        ConfigError: One of them is damaged.
    """
    names = pipeline_names(folder)
    if not names:
        held = [file for file in (PIPELINE_FILE, STATISTICS_FILE) if (folder / file).exists()]
        return {None: Pipeline.load(folder)} if held else {}
    return {name: Pipeline.load(folder / PIPELINES_FOLDER / name) for name in names}


def check_choice(names: Iterable[str], asked: str | None) -> None:
    """Check that a checkpoint has the pipeline that was asked for.

    Args:
        names: Names of its pipelines; none for a policy of one robot.
        asked: None for a checkpoint of one robot.

    Raises:
        ConfigError: It has not, or there are several and none was asked for; the names are listed.
    """
    names = list(names)
    listed = ", ".join(names)
    if not names and asked is not None:
        raise ConfigError(f"This checkpoint is of one robot: leave out pipeline='{asked}'.")
    if names and asked is None:
        raise ConfigError(
            f"This checkpoint was trained on several robots, each with its own statistics: {listed}. Say "
            f"which one is meant: pipeline='{names[0]}', or --pipeline {names[0]} on the command line."
        )
    if names and asked not in names:
        hint = did_you_mean(str(asked), names)
        raise ConfigError(f"This checkpoint has no pipeline '{asked}', only: {listed}.{hint}")
