"""What it saves to keep on disk what frozen parts give, and that nothing else changes."""

import time
from dataclasses import dataclass
from pathlib import Path

from vla.bench.learning.options import LearningOptions
from vla.bench.learning.report import Finding, LearningReport, Run
from vla.bench.learning.watch import WATCHED, Watch, train_watched
from vla.bench.learning.workplace import Say, workplace
from vla.bench.timing import Timing
from vla.errors import ConfigError, did_you_mean
from vla.train.monitor.metrics import read_metrics
from vla.train.recipe import Recipe
from vla.train.recipe_file import load_recipe
from vla.train.setup.run import set_up

KEPT = {"vision": "vision", "vlm": "prefix"}
"""What is frozen -> what can then be kept: the tower's features, or all that the expert reads."""
AIM_SPEED, AIM_DIFFERENCE = ">= 2", "<= 1e-5"
HORIZON = 16
"""Action steps of a chunk; the demonstrations are too short for more."""


@dataclass(frozen=True, kw_only=True)
class FeaturesOptions(LearningOptions):
    """The measurement.

    Attributes:
        preset: Named size of pi-0's config; None: full size.
        freeze: "vision", or "vlm" for the whole vision-language model, whose keys and values are then kept.
        episodes: How many of the dataset are trained on: all of their frames are looked at first.
        batch: Observations per step.
        steps: Steps of every run.
        repeats: Runs without and with kept features, in turn.
    """

    preset: str | None = "middle"
    freeze: str = "vlm"
    episodes: int = 8
    batch: int = 8
    steps: int = 8
    repeats: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze not in KEPT:
            nearest = did_you_mean(self.freeze, KEPT)
            raise ConfigError(f"freeze must be one of {', '.join(KEPT)}, got '{self.freeze}'.{nearest}")
        self._check_at_least(1, "episodes", "batch", "repeats")
        self._check_at_least(2, "steps")


def run_features(options: FeaturesOptions, say: Say = lambda line: None) -> LearningReport:
    """Train without and with kept features, in turn, and compare losses and samples per second.

    Args:
        options: What to measure.
        say: Told about every stage.

    Raises:
        ConfigError: The options do not fit.
        VlaError: See `vla.train.loop.train`.
    """
    with workplace(options, say) as place:
        runs, process = place.report.runs, options.reads_process_time
        folder = place.folder / "features"
        kept = [f"data.feature_cache={folder}", f"data.feature_cache_of={KEPT[options.freeze]}"]
        say("keeping the features")
        building = _seconds_to_build(_recipe(options, place.dataset, place.folder / "none", *kept), process)
        losses: dict[str, list[float]] = {}
        for repeat in range(options.repeats):
            for name, extra in (("images", []), ("features", kept)):
                say(f"training on {name}")
                recipe = _recipe(options, place.dataset, place.folder / f"{name}-{repeat}", *extra)
                runs.append(_train(name, recipe, process))
                losses[name] = _losses(recipe)
    difference = max(abs(a - b) for a, b in zip(losses["images"], losses["features"], strict=True))
    place.report.findings = [
        *_speed(runs),
        Finding("largest difference of the losses", [difference], AIM_DIFFERENCE),
        Finding("seconds to keep the features", [building]),
    ]
    return place.report


def _speed(runs: list[Run]) -> list[Finding]:
    pairs = zip(runs[::2], runs[1::2], strict=True)
    ratios = [seen.step_seconds.median / kept.step_seconds.median for seen, kept in pairs]
    return [Finding("samples/s: features / images", ratios, AIM_SPEED)]


def _seconds_to_build(recipe: Recipe, process: bool) -> float:
    """Return how much longer it takes to set a run up for the first time than for the second."""
    now = time.process_time if process else time.perf_counter
    taken = []
    for _ in range(2):
        start = now()
        set_up(recipe, None, rank=0, processes=1)
        taken.append(now() - start)
    return taken[0] - taken[1]


def _recipe(options: FeaturesOptions, dataset: Path, output: Path, *extra: str) -> Recipe:
    overrides = [
        f"data.path={dataset}",
        f"data.episodes={list(range(options.episodes))}",
        "data.validation_fraction=0",
        "data.augment=false",
        "data.num_workers=0",
        f"policy.preset={options.preset or 'null'}",
        f"policy.freeze={options.freeze}",
        f"policy.config.action_horizon={HORIZON}",
        f"train.steps={options.steps}",
        f"train.batch_size={options.batch}",
        "train.warmup_steps=0",
        "train.precision=no",
        "train.log_every=1",
        "train.tensorboard=false",
        f"output={output}",
    ]
    return load_recipe(None, [*overrides, *WATCHED, *extra])


def _train(name: str, recipe: Recipe, process: bool) -> Run:
    watch = Watch(process)
    train_watched(recipe, watch)
    seconds = Timing.of(watch.step_seconds)
    return Run(name, recipe.train.seed, recipe.train.steps, recipe.train.batch_size, seconds)


def _losses(recipe: Recipe) -> list[float]:
    return [
        record["loss"] for record in read_metrics(Path(recipe.output) / "metrics.jsonl") if "loss" in record
    ]
