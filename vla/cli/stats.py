"""`vla stats DATASET`: what the policy's normalisation would be, as a table and as statistics.json."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla.cli.console import console, parse_flags, parse_numbers, progress_bar
from vla.cli.info.table_options import (
    ColumnOption,
    FpsOption,
    SplitOption,
    SubsetOption,
    check_table,
    table_options,
)
from vla.cli.paths import check_new_folder

if TYPE_CHECKING:
    from rich.table import Table

    from vla.data import LeRobotDataset
    from vla.data.hf.options import TableOptions
    from vla.transforms.normalize import FeatureStats
    from vla.types import Columns

DEFAULT_HORIZON = 50
"""pi-0's own."""


DatasetArgument = Annotated[
    str,
    typer.Argument(
        help="LeRobot dataset, v2.1 or v3.0: folder or hub id. Or hf: and a table of `datasets`.",
        metavar="DATASET",
        show_default=False,
    ),
]
HorizonOption = Annotated[
    int | None,
    typer.Option(min=1, help="Action steps per chunk. 50 by default, or the longest episode if shorter."),
]
DeltaOption = Annotated[
    str | None,
    typer.Option(
        help="Action dimensions learned relative to the state: 1,1,1,0. Missing ones are 0.", metavar="FLAGS"
    ),
]
EpisodesOption = Annotated[str | None, typer.Option(help="Only these: 0,2,5-7.", metavar="LIST")]
RobotOption = Annotated[
    Path | None,
    typer.Option(
        help="Robot file, recipes/robots/*.yaml: what training with it would count.", metavar="FILE"
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        help="The dataset's column, as LeRobot calls it by default; several are joined: a,b.",
        metavar="COLUMNS",
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option(help="New folder to write statistics.json into.", show_default=False)
]


def stats(
    dataset: DatasetArgument,
    action_horizon: HorizonOption = None,
    delta_mask: DeltaOption = None,
    episodes: EpisodesOption = None,
    state_key: KeyOption = None,
    action_key: KeyOption = None,
    robot: RobotOption = None,
    column: ColumnOption = None,
    split: SplitOption = None,
    subset: SubsetOption = None,
    fps: FpsOption = None,
    output: OutputOption = None,
) -> None:
    """Compute exact statistics of states and actions: mean, std, min, max and the 1 % and 99 % quantiles.

    Every frame's state counts once, every action as often as it occurs in a chunk inside its episode, after
    the robot's conventions and the delta to the state where they are asked for: the numbers that training
    normalises with. A robot file brings its delta mask and its columns along. No video is opened or fetched.

    Below the tables stands what is odd: dimensions that are constant, or that move in fewer than 1 % of the
    values (q01 = q99), outliers beyond 10 standard deviations, and a gripper that never moves.

    Example: vla stats bridge_mini_v3 --action-horizon 8 --output runs/statistics
    """
    flags = None if delta_mask is None else parse_flags(delta_mask, "--delta-mask")
    chosen = None if episodes is None else parse_numbers(episodes, "--episodes")
    table = table_options(column, split, subset, fps)
    check_table(dataset, table)
    if output is not None:
        check_new_folder(output, "--output", dataset.removeprefix("hf:"))

    from vla.atomic import atomic_folder
    from vla.data.stats import compute_statistics
    from vla.data.stats_warnings import warn_of_statistics
    from vla.transforms.actions import DeltaActions
    from vla.transforms.base import Pipeline
    from vla.transforms.robots import load_robot
    from vla.types import ACTION_KEY, STATE_KEY

    arm = None if robot is None else load_robot(robot)
    columns = [
        tuple(given.split(",")) if given else default
        for given, default in (
            (state_key, arm.state_key if arm else STATE_KEY),
            (action_key, arm.action_key if arm else ACTION_KEY),
        )
    ]
    opened = _open(dataset, table, action_horizon, chosen, *columns)
    before = []
    if arm is not None:
        from vla.train.setup.robot import check_robot

        before, flags = arm.transforms(), flags or arm.delta_mask
        check_robot(arm, opened, flags)
    if flags is not None:
        before = [*before, DeltaActions(mask=flags)]
    pipeline = Pipeline(before)
    with progress_bar("statistics") as progress:
        statistics = compute_statistics(opened, pipeline, progress=progress)
    names = {"state": opened.state_feature.names, "actions": opened.action_feature.names}
    for feature, values in statistics.features.items():
        console().print(_table(feature, values, names[feature]))
    for warning in warn_of_statistics(statistics, opened, pipeline):
        console().print(f"warning: {warning.message}")
    covered = f"fingerprint of {'all' if chosen is None else 'these'} episodes, without cameras"
    console().print(f"counted: {statistics.convention}\ndataset: {statistics.source} ({covered})")
    if output is not None:
        with atomic_folder(output) as folder:
            statistics.save(folder)
        console().print(f"written: {output / 'statistics.json'}")


def _open(
    dataset: str,
    table: "TableOptions",
    horizon: int | None,
    episodes: list[int] | None,
    state_key: "Columns",
    action_key: "Columns",
) -> "LeRobotDataset":
    """Open the dataset without its videos; without a horizon, for the default or the longest episode."""
    from vla.data import open_dataset

    open_episodes = partial(
        open_dataset,
        dataset,
        table,
        episodes=episodes,
        cameras=[],
        state_key=state_key,
        action_key=action_key,
    )
    if horizon is None:
        longest = max(episode.length for episode in open_episodes(action_horizon=1).episodes)
        horizon = min(DEFAULT_HORIZON, longest)
    return open_episodes(action_horizon=horizon)


def _table(feature: str, values: "FeatureStats", names: tuple[str, ...] | None) -> "Table":
    from rich.table import Table

    table = Table(title=f"{feature} ({values.count} values per dimension)", title_justify="left")
    table.add_column("dimension", overflow="fold")
    columns = ("mean", "std", "min", "q01", "q99", "max")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for index in range(len(values.mean)):
        label = f"{index} {names[index]}" if names else str(index)
        table.add_row(label, *(f"{getattr(values, column)[index]:.4g}" for column in columns))
    return table
