"""Pipelines of our own format as `vla info` shows them: read as JSON, so that no tokenizer is opened."""

from pathlib import Path
from typing import Any

from vla.atomic import read_json
from vla.errors import ConfigError
from vla.transforms.actions import PadDimensions
from vla.transforms.base import PIPELINE_FILE
from vla.transforms.named_pipelines import PIPELINES_FOLDER, pipeline_names
from vla.transforms.normalize import Normalize
from vla.transforms.statistics import STATISTICS_FILE, Statistics

RECIPE_FILE = "recipe.yaml"


def read_robots(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what each robot's pipeline says, by name; nothing where a checkpoint is of one robot.

    Of each: `state_dim`, `action_dim`, `cameras` (slot of the policy -> camera key; None where the
    checkpoint's recipe does not name them), `normalization` (mode by feature), `pipeline` (names of the
    transforms) and `statistics`.

    Raises:
        ConfigError: A pipeline, or the recipe, is damaged.
        StatisticsError: Statistics are damaged.
    """
    cameras = _cameras(folder)
    robots: dict[str, dict[str, Any]] = {}
    for name in pipeline_names(folder):
        own = folder / PIPELINES_FOLDER / name
        steps = {str(step.get("type")): step for step in read_steps(own)}
        sizes = steps.get(PadDimensions.name, {})
        robots[name] = {
            "state_dim": sizes.get("state_dim"),
            "action_dim": sizes.get("action_dim"),
            "cameras": cameras.get(name),
            "normalization": steps.get(Normalize.name, {}).get("modes"),
            "pipeline": list(steps),
            "statistics": read_statistics(own),
        }
    return robots


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """Return the steps in a folder's `pipeline.json`, each with its `type`.

    Raises:
        ConfigError: The file is damaged.
    """
    path = folder / PIPELINE_FILE
    steps = read_json(path, ConfigError).get("steps", [])
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ConfigError(f"{path} is not a pipeline: its steps are not a list of objects.")
    return steps


def read_statistics(folder: Path) -> dict[str, Any] | None:
    """Return what a folder's statistics say, without the numbers; None where it has none."""
    return describe(Statistics.load(folder)) if (folder / STATISTICS_FILE).is_file() else None


def describe(statistics: Statistics) -> dict[str, Any]:
    """Return what was counted, how and where."""
    return {
        "features": {
            name: {"width": values.width, "count": values.count, "held": list(values.held)}
            for name, values in statistics.features.items()
        },
        "convention": statistics.convention,
        "source": statistics.source,
    }


def _cameras(folder: Path) -> dict[str, dict[str, str] | None]:
    """Return each robot's cameras as the checkpoint's recipe, robot files not read, names them."""
    if not (folder / RECIPE_FILE).is_file():
        return {}
    from vla.train.recipe import member_name
    from vla.train.recipe_file import load_recipe

    data = load_recipe(folder / RECIPE_FILE).data
    return {member_name(member): member.cameras or data.cameras for member in data.mixture or ()}
