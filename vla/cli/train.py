"""`vla train RECIPE [key=value ...] [--resume]`."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[
        Path, typer.Argument(help="YAML recipe; see recipes/.", metavar="RECIPE", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Recipe keys to change, dotted: train.steps=200.", metavar="KEY=VALUE"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Train a policy as a recipe says.

    The run's folder is the recipe's `output`: its checkpoints are policy folders that `vla eval` and
    `vla.load` read; its losses are in metrics.jsonl and TensorBoard. SIGTERM saves and exits;
    `--resume` goes on bit for bit.

    Example: vla train recipes/bridge_mini.yaml data.path=bridge_mini_v3 train.steps=200 output=runs/first
    """
    from vla.train.loop import train as run
    from vla.train.recipe import load_recipe

    run(load_recipe(recipe, overrides or []), resume=resume)
