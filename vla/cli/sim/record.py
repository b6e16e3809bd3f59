"""`vla record ENV`: a scripted expert's demonstrations, as a LeRobot dataset."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vla.cli.console import console, parse_numbers, progress_bar
from vla.cli.paths import check_file, check_new_folder
from vla.cli.sim.environment import EnvOptionsOption, RandomiseOption, conditions_of, scene
from vla.machine import cores

EnvArgument = Annotated[
    str,
    typer.Argument(
        help="Environment with an expert: vla/MetaWorld-v0, vla/Detour-v0, ...",
        metavar="ENV",
        show_default=False,
    ),
]
ConditionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        help="One of the environment's conditions (Meta-World: a task), once for each. All by default.",
        metavar="NAME",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=0, help="Processes that simulate and draw; 0: this one.", show_default="the number of cores"
    ),
]


def record(
    env: EnvArgument,
    output: Annotated[Path, typer.Option(help="New folder for the dataset.")] = Path("demonstrations"),
    episodes: Annotated[int, typer.Option(min=1, help="Episodes under each condition.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="First seed; they count up from it.")] = 0,
    condition: ConditionsOption = None,
    noise: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Noise on what is executed: share of half an action's range."),
    ] = 0.0,
    push: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Chance at each step that the robot is pushed off.")
    ] = 0.0,
    push_steps: Annotated[int, typer.Option(min=1, help="How long a push lasts, control steps.")] = 5,
    env_option: EnvOptionsOption = None,
    randomise: RandomiseOption = None,
    workers: WorkersOption = None,
) -> None:
    """Record demonstrations of an environment's scripted expert.

    Writes a LeRobot v3.0 dataset of successful episodes, as many under each condition; seeds on which the
    expert fails are left out and told. With --noise or --push something is added to what is executed, while
    the action that is recorded stays the expert's own for the state that the robot came to: so demonstrations
    show how to come back. Each frame keeps its episode's seed, so that vla replay can try the actions again.

    Example: vla record vla/MetaWorld-v0 --condition reach-v3 --episodes 20 --output reach
    """
    from vla.eval.playing import Disturbance
    from vla.eval.recording import record as recorded

    check_new_folder(output, "--output")
    made_with = scene(env, env_option, randomise)
    chosen = conditions_of(made_with, condition)
    how = Disturbance(noise, push, push_steps)
    with progress_bar("recording") as progress:
        made = recorded(
            made_with,
            output,
            episodes,
            seed,
            conditions=list(chosen.values()) or [{}],
            disturbance=how,
            workers=cores() if workers is None else workers,
            progress=progress,
        )
    for options, seeds in made.failed.items():
        console().print(f"left out, since the expert failed ({options}): seeds {_listed(seeds)}")
    console().print(f"{made.episodes:,} episodes, {made.frames:,} frames: {output}", soft_wrap=True)


def replay(
    dataset: Annotated[Path, typer.Argument(help="Recording of vla record.", metavar="DATASET")],
    episodes: Annotated[str | None, typer.Option(help="Only these, 0,2,5-7.", metavar="LIST")] = None,
    workers: WorkersOption = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers to this file as well.")] = None,
) -> None:
    """Replay recorded actions in the simulator that they were recorded in.

    Says how many episodes still succeed, and how far states and images come from the recorded ones: a
    recording that cannot be replayed was made with another version of the simulator, or does not say what was
    executed.

    Example: vla replay demonstrations --episodes 0-9
    """
    from vla.atomic import atomic_write
    from vla.eval.replay import replay as replayed
    from vla.eval.report import format_percent

    if json is not None:
        check_file(json, "--json")
    chosen = None if episodes is None else parse_numbers(episodes, "--episodes")
    with progress_bar("replaying") as progress:
        made = replayed(dataset, chosen, cores() if workers is None else workers, progress)
    numbers = made.to_json()
    low, high = made.interval
    console().print(
        f"{made.successes} of {len(made.episodes)} episodes succeed again "
        f"({format_percent(made.successes / len(made.episodes))}, "
        f"{format_percent(low)} to {format_percent(high)})\n"
        f"largest difference of a state: {numbers['largest_state_difference']:.2g}\n"
        f"mean difference of the images: {numbers['mean_image_difference']:.2g} of 255",
        soft_wrap=True,
    )
    if numbers["failed"]:
        console().print(f"failed: episodes {_listed(numbers['failed'])}", soft_wrap=True)
    if json is not None:
        import json as codec

        atomic_write(json, codec.dumps(numbers, indent=2) + "\n")


def _listed(numbers: Any) -> str:
    """Return numbers as text, the first of many."""
    shown = ", ".join(str(one) for one in numbers[:20])
    return shown if len(numbers) <= 20 else f"{shown} and {len(numbers) - 20} more"
