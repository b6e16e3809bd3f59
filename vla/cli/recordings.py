"""Predicted against recorded actions for `vla eval --open-loop` and during `vla train`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.cli.console import console, progress_bar
from vla.cli.rollouts import Acting
from vla.errors import ConfigError, DatasetError, gone
from vla.types import ACTION_KEY, STATE_KEY, Columns

if TYPE_CHECKING:
    from vla.data import LeRobotDataset
    from vla.data.hf.options import TableOptions
    from vla.eval.open_loop import OpenLoopResult
    from vla.policies.robot import RobotPolicy

RECIPE_FILE = "recipe.yaml"
EPISODES_WHILE_TRAINING = 10
"""Episodes that are looked at during training: enough to see a trend."""
PLOTS, DRAWS = 4, 8
"""Frames that are drawn while training, and chunks sampled at each."""
FIGURES = 5
"""Episodes that are drawn; the numbers are of all."""


@dataclass(frozen=True)
class Keys:
    """Where a dataset keeps what the policy takes: from the checkpoint's recipe, or LeRobot's habits.

    Attributes:
        cameras: Camera slot of the policy -> camera key; None matches slots with the keys' last parts.
        state: Column of the state, or several that are joined.
        action: The same of the actions.
        table: How a table of `datasets` is read; None as by default.
    """

    cameras: Mapping[str, str] | None = None
    state: Columns = STATE_KEY
    action: Columns = ACTION_KEY
    table: "TableOptions | None" = None


def keys_of(checkpoint: Path, cameras: Sequence[str] | None, pipeline: str | None = None) -> Keys:
    """Return the keys that a checkpoint was trained with, its cameras replaced by `SLOT=KEY` where given.

    Args:
        checkpoint: Its folder.
        cameras: `SLOT=KEY` each.
        pipeline: Whose keys, where it was trained on several robots.

    Raises:
        ConfigError: An entry is not of the form `SLOT=KEY`, the recipe or its robot file cannot be read, or
            the checkpoint was removed by its run.
    """
    keys = Keys()
    if said := gone(checkpoint):
        raise ConfigError(said)
    if (checkpoint / RECIPE_FILE).is_file():
        from vla.train.recipe_file import load_recipe
        from vla.train.setup.members import member_recipes

        recipe = load_recipe(checkpoint / RECIPE_FILE)
        data = member_recipes(recipe)[pipeline].data
        keys = Keys(data.cameras, data.state_key, data.action_key, data.table)
    if not cameras:
        return keys
    pairs = [entry.partition("=") for entry in cameras]
    for entry, (slot, _, key) in zip(cameras, pairs, strict=True):
        if not slot or not key:
            raise ConfigError(f"--camera takes SLOT=KEY, as in top=observation.images.top; got '{entry}'.")
    return replace(keys, cameras={slot: key for slot, _, key in pairs})


def match_cameras(dataset: "LeRobotDataset", slots: Sequence[str], keys: Keys) -> dict[str, str]:
    """Return camera slot -> camera key for the slots of a policy that the dataset can fill.

    Raises:
        DatasetError: It can fill none.
    """
    if keys.cameras is not None:
        return dict(keys.cameras)
    if not slots:  # a policy that sees nothing
        return {}
    by_last_part = {key.rsplit(".", 1)[-1]: key for key in dataset.info.cameras}
    found = {slot: by_last_part[slot] for slot in slots if slot in by_last_part}
    if not found:
        raise DatasetError(
            f"None of the policy's cameras {list(slots)} is in the dataset, which has "
            f"{list(dataset.info.cameras)}; name them with --camera SLOT=KEY."
        )
    return found


def compare(
    policy: "RobotPolicy", dataset: str, keys: Keys, episodes: list[int] | None, seed: int
) -> "OpenLoopResult":
    """Open the dataset and compare the policy with its recordings.

    Raises:
        DatasetError: It is missing, damaged, or has no episode as long as the policy's horizon.
        ShapeError: Its state or actions are not of the policy's widths.
    """
    import torch

    from vla.data import open_dataset
    from vla.eval.open_loop import open_loop

    config = policy.policy.config
    opened = open_dataset(
        dataset,
        keys.table,
        window=config.window.without_past(),  # the policy remembers, frame by frame
        episodes=episodes,
        cameras=None if keys.cameras is None else list(keys.cameras.values()),
        state_key=keys.state,
        action_key=keys.action,
    )
    with progress_bar("open loop") as progress:
        return open_loop(
            policy,
            opened,
            cameras=match_cameras(opened, config.cameras, keys),
            generator=torch.Generator(policy.policy.device).manual_seed(seed),
            progress=progress,
        )


def while_training(policy: Any, job: Any) -> dict[str, float]:
    """Return the open-loop error on a few held-out episodes of each robot.

    On training ones where none are held out. This is the `open_loop` of `vla.train.loop.train`.
    """
    import torch

    from vla.eval.open_loop import open_loop
    from vla.policies.robot import RobotPolicy

    numbers = {}
    for name, robot in job.robots.items():
        result = open_loop(
            RobotPolicy(policy, name),
            robot.evaluation,
            cameras=robot.cameras,
            episodes=[episode.index for episode in robot.evaluation.episodes[:EPISODES_WHILE_TRAINING]],
            generator=torch.Generator(policy.device).manual_seed(0),
        )
        of_robot = "" if name is None else f"/{name}"
        numbers[f"open_loop_relative_error{of_robot}"] = result.relative_error
        numbers[f"open_loop_total_ratio{of_robot}"] = result.total_ratio
    return numbers


def plots_while_training(policy: Any, job: Any) -> dict[str, bytes]:
    """Return drawings of sampled chunks at a few held-out frames of each robot.

    At training ones where none are held out; the same frames and the same noise every time. This is the
    `plots` of `vla.train.loop.train`.
    """
    import torch

    from vla.eval.chunk_plots import chunk_figure, sample_chunks
    from vla.eval.figures import to_png
    from vla.policies.robot import RobotPolicy

    drawings = {}
    for name, robot in job.robots.items():
        samples = sample_chunks(
            RobotPolicy(policy, name),
            robot.evaluation,
            cameras=robot.cameras,
            episodes=range(min(PLOTS, len(robot.evaluation.episodes))),
            draws=DRAWS,
            generator=torch.Generator(policy.device).manual_seed(0),
        )
        of_robot = "" if name is None else f"{name}_"
        for one in samples:
            drawn = f"{of_robot}episode-{one.episode:04d}_frame-{one.frame:04d}"
            drawings[drawn] = to_png(chunk_figure(one), dpi=90)
    return drawings


def _table(result: "OpenLoopResult") -> tuple[list[str], list[list[str]]]:
    header = ["dimension", "mean squared error", "of the mean action", "ratio", "mean abs error"]
    columns = zip(result.names, result.mse, result.mean_mse, result.relative, result.mae, strict=True)
    rows = [[name, *(f"{value:.4g}" for value in values)] for name, *values in columns]
    return header, rows


def print_errors(result: "OpenLoopResult") -> None:
    """Print the errors per dimension next to those of always predicting the mean action."""
    from rich.table import Table

    header, rows = _table(result)
    table = Table(
        title=f"{len(result.episodes)} episodes, {result.steps} predicted steps", title_justify="left"
    )
    for column in header:
        table.add_column(column, justify="left" if column == "dimension" else "right")
    for row in rows:
        table.add_row(*row)
    console().print(table)
    console().print(_sentence(result))


def _sentence(result: "OpenLoopResult") -> str:
    return (
        f"squared error is {result.relative_error:.3f} of that of always predicting the mean action "
        "(mean over the dimensions that vary)"
    )


def write_comparison(folder: Path, acting: Acting, dataset: str, result: "OpenLoopResult") -> None:
    """Write report.html, a plot of each of the first few episodes, and open_loop.json."""
    from vla.eval.figures import to_png
    from vla.eval.report import FigureBlock, Report, TableBlock, write_report

    header, rows = _table(result)
    blocks: list[Any] = [TableBlock("Error per action dimension, robot units", header, rows)]
    for episode, figure in replace(result, episodes=result.episodes[:FIGURES]).figures().items():
        png = to_png(figure)
        (folder / f"episode_{episode:04d}.png").write_bytes(png)
        blocks.append(FigureBlock(f"Episode {episode}", png, "Each dot begins a predicted chunk."))
    lead = f"Predictions of {acting} at the recorded frames of {dataset}; {_sentence(result)}."
    write_report(folder / "report.html", Report("Predicted against recorded actions", lead, blocks=blocks))
    who = {"checkpoint": acting.checkpoint, "pipeline": acting.pipeline, "level": acting.level}
    who["quantize"] = acting.quantize
    numbers = {**who, "dataset": dataset, **result.to_json()}
    (folder / "open_loop.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
