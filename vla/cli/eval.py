"""`vla eval CHECKPOINT`: success in a simulated environment, or agreement with recordings."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vla.cli.commands import LevelName, given_options
from vla.cli.console import console, parse_numbers, quiet_loading
from vla.cli.info.table_options import (
    ColumnOption,
    FpsOption,
    SplitOption,
    SubsetOption,
    check_table,
    table_options,
)
from vla.cli.paths import check_new_folder
from vla.errors import ConfigError

CheckpointArgument = Annotated[
    str,
    typer.Argument(
        help="Policy folder, run folder, hub id or short name.", metavar="CHECKPOINT", show_default=False
    ),
]
ConditionOption = Annotated[
    str | None,
    typer.Option(
        "--condition",
        "--side",
        help="One of the environment's conditions (Detour: left, right, unstated). All by default.",
        metavar="NAME",
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, help="First layout's seed; also seeds the policy's noise.")]
ExecuteOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Actions executed of each chunk. Half of it by default, or what the policy says."
    ),
]
FilmOption = Annotated[int, typer.Option(min=0, help="Episodes per condition in the film.")]
OpenLoopOption = Annotated[
    str | None, typer.Option(help="Compare with this dataset's recordings instead.", metavar="DATASET")
]
DatasetEpisodesOption = Annotated[
    str | None, typer.Option(help="With --open-loop: only these, 0,2,5-7.", metavar="LIST")
]
CameraOption = Annotated[
    list[str] | None,
    typer.Option(help="With --open-loop: SLOT=KEY, once per camera. As in training by default."),
]
PipelineOption = Annotated[
    str | None,
    typer.Option(help="Which robot of a checkpoint that was trained on several.", metavar="NAME"),
]
BaseOption = Annotated[
    str | None,
    typer.Option(help="Of an adapter: where its base lies, if no longer where it says.", metavar="WHERE"),
]
LevelOption = Annotated[
    LevelName | None,
    typer.Option(
        help="How to sample: plain, graph, compiled or triton (Real time).",
        show_default="the highest that pays",
    ),
]
OutputOption = Annotated[Path, typer.Option(help="Folder for the report; must not exist.")]


_OF_RECORDINGS = ("dataset_episodes", "camera", "column", "split", "subset", "fps")
_OF_ENVIRONMENTS = ("env", "episodes", "condition", "execute", "batch_size", "film")


def evaluate(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    env: Annotated[str, typer.Option(help="Gymnasium environment.")] = "vla/Detour-v0",
    episodes: Annotated[int, typer.Option(min=1, help="Episodes per condition.")] = 100,
    condition: ConditionOption = None,
    seed: SeedOption = 100_000,
    execute: ExecuteOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Episodes run at once.")] = 50,
    film: FilmOption = 6,
    open_loop: OpenLoopOption = None,
    dataset_episodes: DatasetEpisodesOption = None,
    camera: CameraOption = None,
    column: ColumnOption = None,
    split: SplitOption = None,
    subset: SubsetOption = None,
    fps: FpsOption = None,
    pipeline: PipelineOption = None,
    base: BaseOption = None,
    output: OutputOption = Path("eval_run"),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default=False)] = None,
    level: LevelOption = None,
) -> None:
    """Evaluate a policy in a simulated environment, or against a dataset's recorded actions.

    In an environment: runs episodes on seeds, prints success with 95 % intervals, and writes report.html,
    episodes.mp4 and summary.json. With --open-loop: predicts a chunk at frame after frame of the recordings
    and reports the error per dimension next to that of always predicting the mean action, with a plot of
    predicted against recorded actions per dimension. A checkpoint that was trained on several robots acts as
    the one that --pipeline names.

    Example: vla eval runs/first --open-loop bridge_mini_v3 --output eval_first
    """
    check_new_folder(output, "--output", (open_loop or "").removeprefix("hf:"))
    _check_options(context, open_loop)

    from vla.atomic import atomic_folder
    from vla.cli.rollouts import Acting
    from vla.policies.auto import load_for_episodes
    from vla.weights.source import local_folder

    quiet_loading()
    source = local_folder(checkpoint)
    check_new_folder(output, "--output", source)
    if open_loop is not None:
        from vla.cli.recordings import compare, keys_of, print_errors, write_comparison

        chosen = None if dataset_episodes is None else parse_numbers(dataset_episodes, "--dataset-episodes")
        check_table(open_loop, table_options(column, split, subset, fps))
        policy = load_for_episodes(source, level, pipeline=pipeline, device=device, base=base)
        keys = keys_of(source, camera, pipeline)
        keys = replace(keys, table=table_options(column, split, subset, fps, keys.table))
        compared = compare(policy, open_loop, keys, chosen, seed)
        print_errors(compared)
        with atomic_folder(output) as folder:
            write_comparison(folder, Acting(checkpoint, pipeline, policy.last_level), open_loop, compared)
    else:
        from vla.cli.rollouts import Rollouts, choose_conditions, run_conditions, show_success, write_results
        from vla.eval.envs import environment_report

        conditions = choose_conditions(env, condition)
        policy = load_for_episodes(source, level, pipeline=pipeline, device=device, base=base)
        steps = policy.policy.config.executed_steps if execute is None else execute
        plan = Rollouts(env, episodes, seed, conditions, steps, batch_size, film=min(film, episodes))
        results = run_conditions(policy, plan)
        summaries = show_success(results, environment_report(env))
        with atomic_folder(output) as folder:
            write_results(folder, Acting(checkpoint, pipeline, policy.last_level), plan, results, summaries)
    console().print(f"sampled at level '{policy.last_level}'\nreport: {output / 'report.html'}")


def _check_options(context: typer.Context, open_loop: str | None) -> None:
    """Refuse options that were given for the other kind of evaluation, which would ignore them."""
    if open_loop is None and (given := given_options(context, _OF_RECORDINGS)):
        raise ConfigError(f"{given[0]} is about --open-loop DATASET, which is not given.")
    if open_loop is not None and (given := given_options(context, _OF_ENVIRONMENTS)):
        instead = " Recorded episodes are chosen by --dataset-episodes." if "--episodes" in given else ""
        raise ConfigError(
            f"{given[0]} is about an environment, and --open-loop compares with recordings: leave it out."
            f"{instead}"
        )
