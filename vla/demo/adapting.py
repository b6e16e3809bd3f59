"""Adapt the demo's policy to a second robot from few demonstrations: by an adapter, or all of its weights."""

from pathlib import Path

from vla.demo.adapting_report import (
    FULL,
    LORA,
    SCRATCH,
    TITLES,
    AdaptingResults,
    Way,
    write_results,
)
from vla.demo.demonstrations import check_batch, record_demonstrations
from vla.demo.evaluation import check_acts, evaluate
from vla.demo.report import FLOW
from vla.demo.run import (
    DEMONSTRATIONS,
    LAYOUTS,
    SEEDS_PER_RUN,
    PartProgress,
    check_plan,
    no_progress,
    packaged_recipe,
    timed,
    twin_recipe,
)
from vla.demo.twins import Trained, train_side_by_side
from vla.errors import ConfigError, VlaError, WeightsError
from vla.eval.envs.detour import CAMERA
from vla.eval.envs.detour_embodiment import SECOND
from vla.fast.levels import check_level
from vla.policies.auto import AutoPolicy
from vla.train.recipe import Recipe
from vla.train.setup.members import check_cameras
from vla.train.setup.policy import start
from vla.types import IMAGE_PREFIX, ProgressCallback
from vla.weights.source import local_folder

FEW = 50
"""Demonstrations of the second robot."""

_FROM_BASE = {
    LORA: (
        "policy.adapter.preset=expert",
        "policy.adapter.rank=6",
        "policy.adapter.alpha=12",
        "train.learning_rate=5.0e-3",
    ),
    FULL: (),
}
"""Overrides of `adapt.yaml` for each way."""


def run_adapting(
    output: Path,
    seed: int = 0,
    *,
    base: Path | None = None,
    demonstrations: int | None = None,
    layouts: int | None = None,
    steps: int | None = None,
    level: str | None = None,
    progress: PartProgress = no_progress,
) -> AdaptingResults:
    """Adapt a policy of the demo's first robot to its second in two ways, and compare on unseen layouts.

    LoRA and full fine-tuning are compared with the policy as it was, and with the same network trained from
    scratch on the second robot's demonstrations alone. The folder then holds `report.html`, `summary.json`,
    `episodes.mp4`, the dataset `demonstrations/`, the runs `lora/`, `full/` and `scratch/`, and `base/` with
    its demonstrations and its run where no base was given.

    Args:
        output: Folder; must not exist or be empty.
        seed: Seed of demonstrations, training and evaluation. No layout is among those of `run_demo`.
        base: The folder of a demo, or of a run or policy for its first robot; where not given, one is trained
            as in the demo.
        demonstrations: Episodes of the second robot to record; `FEW` where not given.
        layouts: Unseen layouts, each tried under three instructions; `LAYOUTS` where not given.
        steps: Steps of every training; the recipes' where not given.
        level: Level of sampling; the highest that pays where not given.
        progress: Makes a progress callback for a named part.

    Raises:
        ConfigError: The folder is not empty, the base does not exist or is of another robot, or a number is
            too small; nothing has been written.
        WeightsError: The base cannot be opened.
        TrainingError: A training failed.
    """
    demonstrations = FEW if demonstrations is None else demonstrations
    layouts = LAYOUTS if layouts is None else layouts
    check_level(level or True, name="level")
    check_plan(output, seed, demonstrations, layouts)
    seconds: dict[str, float] = {}
    first = seed * SEEDS_PER_RUN + SEEDS_PER_RUN // 4
    for name in (LORA, FULL, SCRATCH):
        check_batch(_recipe(name, output, output / "base", seed, steps), demonstrations, first, SECOND)
    if base is None:
        with timed(seconds, "base"):
            checkpoint = _train_base(output / "base", seed, steps, progress)
    else:
        checkpoint = _policy_folder(base)
        _check_base(base, _recipe(FULL, output, checkpoint, seed, steps))
    parameters = AutoPolicy.from_pretrained(checkpoint).num_parameters()

    recorded = output / "demonstrations"
    with timed(seconds, "recording"), progress("recording") as show:
        frames = record_demonstrations(recorded, demonstrations, first, show, SECOND)
    recipes = {name: _recipe(name, output, checkpoint, seed, steps) for name in (LORA, FULL, SCRATCH)}
    with timed(seconds, "training"):
        runs = train_side_by_side(recipes)

    unseen = range(first + SEEDS_PER_RUN // 2, first + SEEDS_PER_RUN // 2 + layouts)
    ways = {}
    with timed(seconds, "evaluation"):
        for name in TITLES:
            with progress(f"trying {TITLES[name]}") as show:
                ways[name] = _try(checkpoint, runs.get(name), unseen, seed, show, level)
    results = AdaptingResults(seed, demonstrations, frames, parameters, ways, seconds)
    write_results(output, results)
    return results


def _policy_folder(base: Path) -> Path:
    """Return the absolute folder of the policy that a demo, a run or a policy's own folder holds."""
    run = base / FLOW if (base / FLOW).is_dir() else base
    reason = "there is no such folder."
    if run.is_dir():
        try:
            return local_folder(run).absolute()
        except WeightsError as error:
            reason = str(error)
    raise ConfigError(
        f"{base} is neither a demo's folder, nor a run's, nor a policy's: {reason} Make one with `vla demo`, "
        "or leave --base out."
    )


def _check_base(base: Path, recipe: Recipe) -> None:
    """Raise `ConfigError` where the base could not be trained or tried on the second robot."""
    try:
        policy = start(recipe, None)
        assert policy is not None
        check_cameras(policy, {CAMERA.removeprefix(IMAGE_PREFIX): CAMERA})
        check_acts(Path(recipe.policy.pretrained or ""), SECOND)
    except VlaError as error:
        raise ConfigError(f"{base} is not a base for the demo's second robot: {error}") from error


def _train_base(folder: Path, seed: int, steps: int | None, progress: PartProgress) -> Path:
    """Train the demo's flow policy for the first robot; return its checkpoint, absolute."""
    with progress("recording the first robot") as show:
        record_demonstrations(folder / "demonstrations", DEMONSTRATIONS, seed * SEEDS_PER_RUN, show)
    run = train_side_by_side({FLOW: twin_recipe(folder, FLOW, seed, steps)})[FLOW]
    return run.checkpoint.absolute()


def _recipe(name: str, output: Path, base: Path, seed: int, steps: int | None) -> Recipe:
    """Return the recipe of one way to the second robot."""
    overrides = [
        f"data.path={output / 'demonstrations'}",
        f"output={output / name}",
        f"train.seed={seed}",
    ]
    if name in _FROM_BASE:
        overrides += [f"policy.pretrained={base}", *_FROM_BASE[name]]
        return packaged_recipe("adapt.yaml", overrides, steps)
    as_long = packaged_recipe("adapt.yaml", overrides, steps)
    overrides += [
        f"policy.config.action_horizon={as_long.policy.config['action_horizon']}",
        "data.validation_fraction=0",
        "train.validate_every=null",
    ]
    return packaged_recipe("detour.yaml", overrides, as_long.train.steps)


def _try(
    base: Path, run: Trained | None, unseen: range, seed: int, show: ProgressCallback, level: str | None
) -> Way:
    """Evaluate one of the policies with the second robot, and note what it cost to get it."""
    checkpoint = base if run is None else run.checkpoint
    policy = AutoPolicy.from_pretrained(checkpoint)
    episodes, sampled_at = evaluate(checkpoint, unseen, seed, show, SECOND, level)
    return Way(
        episodes,
        trained=0 if run is None else policy.num_parameters(only_trainable=True),
        saved=sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")),
        run=run,
        level=sampled_at,
    )
