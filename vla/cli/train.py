"""`vla train RECIPE [key=value ...] [--resume]`, and `vla recipes`, which brings recipes to start from."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from vla.atomic import atomic_folder
from vla.cli.console import console, quiet_loading
from vla.cli.paths import check_new_folder

_RECIPES = Path(__file__).parents[1] / "recipes"


def train(
    recipe: Annotated[
        Path,
        typer.Argument(help="YAML recipe; `vla recipes` brings some.", metavar="RECIPE", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Recipe keys to change, dotted: train.steps=200.", metavar="KEY=VALUE"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")
    ] = False,
) -> None:
    """Train a policy as a recipe says.

    The run's folder is the recipe's `output`: its checkpoints are policy folders that `vla eval` and
    `vla.load` read; its losses are in metrics.jsonl and TensorBoard. Ctrl-C, SIGTERM, SIGHUP, SIGUSR1
    and SIGUSR2 finish the step, save and exit (128 + number), a second one exits at once; `--resume`
    continues bit for bit.

    Example: vla train recipes/bridge_mini.yaml data.path=bridge_mini_v3 train.steps=200 output=runs/first
    """
    from vla.train.recipe_file import load_recipe

    settings = load_recipe(recipe, overrides or [])

    if resume:
        from vla.train.checkpoint.same_run import refuse_another_run

        refuse_another_run(recipe, settings, overrides or [])

    from vla.cli.info.training_memory import predicted_for
    from vla.cli.recordings import plots_while_training, while_training
    from vla.cli.rollouts import RolloutsWhileTraining, check_rollouts
    from vla.train.launch import Launch
    from vla.train.loop import train as run

    main = Launch.from_environment().is_main
    rollouts = settings.train.rollout
    if main and rollouts is not None:
        check_rollouts(rollouts)
    quiet_loading()
    result = run(
        settings,
        resume=resume,
        open_loop=while_training,
        plots=plots_while_training,
        memory=predicted_for,
        rollouts=None if rollouts is None else RolloutsWhileTraining(rollouts),
    )
    if result.stop_signal is not None:
        if main:
            console().print(f"stopped at step {result.step}; the same command with --resume continues")
        raise typer.Exit(128 + result.stop_signal)
    if main:
        console().print(f"policy: {result.checkpoint}")


def recipes(
    dst: Annotated[
        Path, typer.Argument(help="New folder to write into.", metavar="DST", show_default="recipes")
    ] = Path("recipes"),
) -> None:
    """Write the recipes that vla brings into a folder: to train with, to copy, and for robots.

    DST/*.yaml are for `vla train`, DST/robots/*.yaml for `data.robot` and `vla.load(robot=...)`, and
    DST/accelerate/*.yaml for `accelerate launch --config_file`. A clone of the repository has them already.

    Example: vla recipes my_recipes
    """
    check_new_folder(dst, "DST", empty=True)
    with atomic_folder(dst) as folder:
        shutil.copytree(_RECIPES, folder, dirs_exist_ok=True)
    for path in sorted(dst.rglob("*.yaml")):
        console().print(str(path))
