"""The demo from start to end: record, train, evaluate, report."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from vla.demo.demonstrations import check_batch, record_demonstrations
from vla.demo.evaluation import evaluate, fans
from vla.demo.report import FLOW, REGRESSION, TITLES, DemoResults, write_results
from vla.demo.twins import train_side_by_side
from vla.errors import ConfigError
from vla.fast.levels import check_level
from vla.policies.auto import AutoPolicy
from vla.train.recipe import Recipe
from vla.train.recipe_file import load_recipe
from vla.types import ProgressCallback

DEMONSTRATIONS = 1000
LAYOUTS = 200
SEEDS_PER_RUN = 1_000_000
"""Layout seeds of one demo: demonstrations count from the first, evaluation from the middle."""

PartProgress = Callable[[str], AbstractContextManager[ProgressCallback]]
"""Shows the progress of the part with this name while the context lasts."""


@contextmanager
def no_progress(part: str) -> Iterator[ProgressCallback]:
    """Show nothing."""
    yield lambda done, total: None


def run_demo(
    output: Path,
    seed: int = 0,
    *,
    demonstrations: int | None = None,
    layouts: int | None = None,
    steps: int | None = None,
    level: str | None = None,
    progress: PartProgress = no_progress,
) -> DemoResults:
    """Record demonstrations, train pi-0 and its regression twin on them, evaluate both, write the report.

    The folder then holds `report.html`, `summary.json`, `episodes.mp4`, the dataset `demonstrations/`, and
    the runs `flow/` and `regression/`.

    Args:
        output: Folder; must not exist or be empty.
        seed: Seed of demonstrations, training and evaluation.
        demonstrations: Episodes to record; `DEMONSTRATIONS` where not given.
        layouts: Unseen layouts, each tried under three instructions; `LAYOUTS` where not given.
        steps: Training steps; the recipe's where not given.
        level: Level of sampling; the highest that pays where not given.
        progress: Makes a progress callback for a named part.

    Raises:
        ConfigError: The folder is not empty, or a number is too small; nothing has been written.
        TrainingError: A training failed.
    """
    demonstrations = DEMONSTRATIONS if demonstrations is None else demonstrations
    layouts = LAYOUTS if layouts is None else layouts
    check_level(level or True, name="level")
    check_plan(output, seed, demonstrations, layouts)
    seconds: dict[str, float] = {}
    first = seed * SEEDS_PER_RUN
    recipes = {name: twin_recipe(output, name, seed, steps) for name in TITLES}
    for recipe in recipes.values():
        check_batch(recipe, demonstrations, first)

    with timed(seconds, "recording"), progress("recording") as show:
        frames = record_demonstrations(output / "demonstrations", demonstrations, first, show)
    with timed(seconds, "training"):
        trained = train_side_by_side(recipes)
    unseen = range(first + SEEDS_PER_RUN // 2, first + SEEDS_PER_RUN // 2 + layouts)
    episodes, levels = {}, {}
    with timed(seconds, "evaluation"):
        for name, run in trained.items():
            with progress(f"trying {name}") as show:
                episodes[name], levels[name] = evaluate(run.checkpoint, unseen, seed, show, level=level)
        checkpoints = {TITLES[name]: run.checkpoint for name, run in trained.items()}
        sampled = fans(checkpoints, unseen[0], seed, level=level)
    parameters = AutoPolicy.from_pretrained(trained[FLOW].checkpoint).num_parameters()
    results = DemoResults(
        seed, demonstrations, frames, parameters, trained, episodes, sampled, seconds, levels
    )
    write_results(output, results)
    return results


def check_plan(output: Path, seed: int, demonstrations: int, layouts: int) -> None:
    """Raise `ConfigError` where the folder is not empty or a number is too small."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists already; choose another folder with --output, or remove it.")
    if min(demonstrations, layouts) < 3 or seed < 0:
        raise ConfigError("The demo needs at least 3 demonstrations and 3 layouts, and a seed from 0 on.")


def twin_recipe(output: Path, name: str, seed: int, steps: int | None) -> Recipe:
    """Return the recipe of one of the twins; they differ only in what the action head learns."""
    overrides = [
        f"data.path={output / 'demonstrations'}",
        f"output={output / name}",
        f"train.seed={seed}",
        f"policy.config.action_objective={REGRESSION if name == REGRESSION else FLOW}",
    ]
    return packaged_recipe("detour.yaml", overrides, steps)


def packaged_recipe(name: str, overrides: list[str], steps: int | None) -> Recipe:
    """Return a recipe of this package with overrides; warm-up takes at most half of the steps."""
    with as_file(files("vla.demo") / name) as path:
        recipe = load_recipe(path, overrides)
        if steps is None:
            return recipe
        warmup = min(recipe.train.warmup_steps, steps // 2)
        return load_recipe(path, [*overrides, f"train.steps={steps}", f"train.warmup_steps={warmup}"])


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Record how long a part took, in seconds, under its name."""
    start = time.monotonic()
    yield
    seconds[part] = time.monotonic() - start
