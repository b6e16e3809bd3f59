"""`vla eval CHECKPOINT`: success in a simulated environment, or agreement with recordings."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla.cli.commands import LevelName, QuantizeName, given_options
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
from vla.cli.rollouts import (
    Acting,
    Rollouts,
    Server,
    run_conditions,
    show_success,
    write_results,
)
from vla.cli.sim.environment import EnvOptionsOption, RandomiseOption, conditions_of, scene
from vla.errors import ConfigError

if TYPE_CHECKING:
    from vla.cli.recordings import Keys
    from vla.data import TableOptions
    from vla.eval.scene import Scene
    from vla.policies.robot import RobotPolicy
    from vla.serve.remote import RemotePolicy

TOKEN_VARIABLE = "VLA_SERVE_TOKEN"
"""Of the environment: the token that a server asks for."""

CheckpointArgument = Annotated[
    str,
    typer.Argument(
        help="Policy folder, run folder, hub id or short name.", metavar="CHECKPOINT", show_default=False
    ),
]
OptionalCheckpointArgument = Annotated[
    str | None,
    typer.Argument(
        help="Policy folder, run folder, hub id or short name; none with --server.",
        metavar="CHECKPOINT",
        show_default=False,
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
QuantizeOption = Annotated[
    QuantizeName | None,
    typer.Option(
        help="Store the linear layers in 4 or 8 bits, as an adapter's base was in training (QLoRA).",
        show_default=False,
    ),
]
LevelOption = Annotated[
    LevelName | None,
    typer.Option(
        help="How to sample: plain, graph, compiled or triton (Real time).",
        show_default="the highest that pays",
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(help="Ask a server (vla serve) instead of CHECKPOINT.", metavar="URL", show_default=False),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        help=f"The server's token; {TOKEN_VARIABLE} of the environment by default.",
        metavar="TOKEN",
        show_default=False,
    ),
]
NoiseOption = Annotated[
    str | None,
    typer.Option(
        help="batch: one source of noise for the episodes run at once; chunk: a seed for each chunk.",
        show_default="batch; chunk with --server",
    ),
]
WorkersOption = Annotated[
    int,
    typer.Option(
        min=0, help="Processes that the environment runs in, for one that draws slowly; 0: this one."
    ),
]
OutputOption = Annotated[Path, typer.Option(help="Folder for the report; must not exist.")]


_OF_RECORDINGS = ("dataset_episodes", "camera", "column", "split", "subset", "fps")
_OF_ENVIRONMENTS = (
    "env", "episodes", "condition", "execute", "batch_size", "film", "noise", "server", "env_option",
    "workers", "randomise",
)  # fmt: skip
_OF_LOADING = ("pipeline", "base", "quantize", "device", "level")


def evaluate(
    context: typer.Context,
    checkpoint: OptionalCheckpointArgument = None,
    env: Annotated[str, typer.Option(help="Gymnasium environment.")] = "vla/Detour-v0",
    episodes: Annotated[int, typer.Option(min=1, help="Episodes per condition.")] = 100,
    condition: ConditionOption = None,
    seed: SeedOption = 100_000,
    execute: ExecuteOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Episodes run at once.")] = 50,
    film: FilmOption = 6,
    env_option: EnvOptionsOption = None,
    randomise: RandomiseOption = None,
    workers: WorkersOption = 0,
    open_loop: OpenLoopOption = None,
    dataset_episodes: DatasetEpisodesOption = None,
    camera: CameraOption = None,
    column: ColumnOption = None,
    split: SplitOption = None,
    subset: SubsetOption = None,
    fps: FpsOption = None,
    pipeline: PipelineOption = None,
    base: BaseOption = None,
    quantize: QuantizeOption = None,
    output: OutputOption = Path("eval_run"),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default=False)] = None,
    level: LevelOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    noise: NoiseOption = None,
) -> None:
    """Evaluate a policy in a simulated environment, or against a dataset's recorded actions.

    In an environment: runs episodes on seeds, prints success with 95 % intervals, and writes report.html,
    episodes.mp4 and summary.json. With --open-loop: predicts a chunk at frame after frame of the recordings
    and reports the error per dimension next to that of always predicting the mean action, with a plot of
    predicted against recorded actions per dimension. A checkpoint that was trained on several robots acts as
    the one that --pipeline names. With --server: the same episodes through a policy server, with those seeds;
    in process --noise chunk gives the same ones.

    Example: vla eval runs/first --open-loop bridge_mini_v3 --output eval_first

    Example: vla eval --server ws://gpu-machine:8000
    """
    check_new_folder(output, "--output", (open_loop or "").removeprefix("hf:"))
    _check_options(context, open_loop)
    _check_server(context, checkpoint, server, noise)
    quiet_loading()
    planned = partial(_planned, episodes, seed, batch_size, film, workers)
    if server is not None:
        plan = planned("chunk", scene(env, env_option, randomise), condition)
        _through_server(server, token, plan, execute, output)
        return

    from vla.policies.auto import load_for_episodes
    from vla.weights.source import local_folder

    source = local_folder(str(checkpoint))  # there is one: _check_server
    check_new_folder(output, "--output", source)
    how = {"pipeline": pipeline, "device": device, "base": base, "quantize": quantize}
    load = partial(load_for_episodes, source, level, **how)
    acting = Acting(str(checkpoint), pipeline, "", quantize=quantize)  # the level that acted comes later
    if open_loop is not None:
        chosen = None if dataset_episodes is None else parse_numbers(dataset_episodes, "--dataset-episodes")
        check_table(open_loop, table_options(column, split, subset, fps))
        policy = load()
        keys = _keys(source, camera, pipeline, partial(table_options, column, split, subset, fps))
        _compare(policy, open_loop, keys, chosen, seed, acting, output)
    else:
        plan = planned(noise or "batch", scene(env, env_option, randomise), condition)
        policy = _act(load, plan, execute, acting, output)
    _show_end(policy.last_level, output)


def _keys(
    source: Path, camera: list[str] | None, pipeline: str | None, options: "Callable[..., TableOptions]"
) -> "Keys":
    """Return what recordings are read by: as in training, but for what the user gives."""
    from vla.cli.recordings import keys_of

    keys = keys_of(source, camera, pipeline)
    return replace(keys, table=options(keys.table))


def _compare(
    policy: "RobotPolicy", dataset: str, keys: "Keys", chosen: list[int] | None, seed: int,
    acting: Acting, output: Path,
) -> None:  # fmt: skip
    """Compare with recordings, print the errors, and write them down."""
    from vla.atomic import atomic_folder
    from vla.cli.recordings import compare, print_errors, write_comparison

    compared = compare(policy, dataset, keys, chosen, seed)
    print_errors(compared)
    with atomic_folder(output) as folder:
        write_comparison(folder, replace(acting, level=policy.last_level), dataset, compared)


def _planned(
    episodes: int, seed: int, batch_size: int, film: int, workers: int,
    noise: str, made_with: "Scene", condition: str | None,
) -> Callable[[int], Rollouts]:  # fmt: skip
    """Return what makes the plan, given the actions that are executed of each chunk."""
    conditions = conditions_of(made_with, None if condition is None else [condition])
    return lambda steps: Rollouts(
        made_with, episodes, seed, conditions, steps, batch_size, min(film, episodes), noise, workers
    )


def _act(
    load: "Callable[[], RobotPolicy]", plan: Callable[[int], Rollouts], execute: int | None, acting: Acting,
    output: Path,
) -> "RobotPolicy":  # fmt: skip
    """Load a policy, evaluate it in an environment, and return it."""
    policy = load()
    steps = execute or policy.policy.config.executed_steps
    _roll_out(policy, plan(steps), lambda: replace(acting, level=policy.last_level), output)
    return policy


def _through_server(
    url: str, token: str | None, plan: Callable[[int], Rollouts], execute: int | None, output: Path
) -> None:
    """Evaluate what a server serves.

    Raises:
        ConfigError: It does not say how many actions to execute, and nor does the user.
    """
    from vla.serve.remote import RemotePolicy

    size = plan(1)
    connections = min(size.batch_size, size.episodes)
    with RemotePolicy(url, token=token or os.environ.get(TOKEN_VARIABLE), connections=connections) as policy:
        robot = policy.robot
        steps = execute or robot.execute
        if steps is None:
            raise ConfigError(
                f"{policy.uri} does not say how many actions to execute of a chunk: --execute N."
            )

        def acting() -> Acting:
            server = Server(
                policy.uri, robot.version, robot.revision, policy.clipped, policy.lost_sessions,
                policy.reconnects, robot.source,
            )  # fmt: skip
            return Acting(robot.checkpoint or "unnamed", None, policy.last_level, server)

        _roll_out(policy, plan(steps), acting, output)
        console().print(str(acting().server), soft_wrap=True)
        _show_end(policy.last_level, output)


def _roll_out(
    policy: "RobotPolicy | RemotePolicy", plan: Rollouts, acting: Callable[[], Acting], output: Path
) -> None:
    """Run episodes, print the success, and write the report; `acting` is called once they are over."""
    from vla.atomic import atomic_folder
    from vla.eval.envs import environment_report

    results = run_conditions(policy, plan)
    summaries = show_success(results, environment_report(plan.scene.env))
    with atomic_folder(output) as folder:
        write_results(folder, acting(), plan, results, summaries)


def _show_end(level: str, output: Path) -> None:
    console().print(f"sampled at level '{level}'\nreport: {output / 'report.html'}")


def _check_server(
    context: typer.Context, checkpoint: str | None, server: str | None, noise: str | None
) -> None:
    """Refuse what does not go with a server, or only with one.

    Raises:
        ConfigError: There are both a checkpoint and a server, or neither; or an option has no meaning.
    """
    if noise not in (None, "batch", "chunk"):
        raise ConfigError(f"--noise is batch or chunk, got '{noise}'.")
    if server is None:
        if checkpoint is None:
            raise ConfigError("There is nothing to evaluate: name a CHECKPOINT, or a --server.")
        if given := given_options(context, ("token",)):
            raise ConfigError(f"{given[0]} is about --server URL, which is not given.")
        return
    if checkpoint is not None:
        raise ConfigError(
            f"--server evaluates the checkpoint that {server} serves: leave out '{checkpoint}', or --server."
        )
    if given := given_options(context, _OF_LOADING):
        raise ConfigError(f"{given[0]} is about loading a checkpoint, which the server did: leave it out.")
    if noise == "batch":
        raise ConfigError(
            "--noise batch draws from one source for all episodes, which does not travel to a server: "
            "leave it out; in process --noise chunk gives the same episodes."
        )


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
