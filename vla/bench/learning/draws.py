"""How much sooner several noise draws per observation learn what one draw learns.

Both runs are the demo's recipe, each from its first step to its last with a warm-up and a cosine of its own:
a loss in the middle of a cosine would say nothing. What is reached is the held-out loss that the run with
one draw ends with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from vla.bench.learning.curve import Point, mean_curve, seconds_to_reach
from vla.bench.learning.options import LearningOptions
from vla.bench.learning.report import Finding, LearningReport, Run
from vla.bench.learning.watch import WATCHED, Watch, held_out_batches, train_watched
from vla.bench.learning.workplace import Say, workplace
from vla.bench.timing import Timing
from vla.errors import ConfigError, did_you_mean
from vla.train.recipe import Recipe
from vla.train.recipe_file import load_recipe
from vla.types import Batch

SHAPES: dict[str, tuple[str, ...]] = {
    "pi0": (
        "policy.config.vision.patch_size=8",
        "policy.config.action_horizon=8",
        "policy.config.expert.width=32",
        "policy.config.expert.mlp_dim=64",
        "train.batch_size=8",
    ),
    "demo": (),
}
"""What differs from the demo's recipe. There the prefix costs about as much as a chunk, so that four chunks
cost twice what one does, and sharing the prefix saves little. In pi-0 it costs a hundred times as much; "pi0"
is a step in that direction that a CPU can train: more image tokens, shorter chunks, a smaller expert. Its
batches are small: where many observations make a step, noise and time disturb it little anyway."""

LOOKS = 20
"""Looks at the held-out loss in every run."""
AIM = "<= 0.60"
WARMUP = 0.05
"""The share of the steps over which the learning rate rises, as in the demo's recipe."""


@dataclass(frozen=True, kw_only=True)
class DrawsOptions(LearningOptions):
    """The measurement.

    Attributes:
        shape: "pi0" or "demo", see `SHAPES`.
        draws: Noise draws per observation of the run that is to be faster.
        steps: Steps of the run with one draw.
        share: Steps of the run with several, as a share of them.
        batch: Observations per step of both; None is the shape's.
        learning_rate: Learning rate of the run with several, whose gradient has less noise; None takes the
            recipe's.
        seeds: How often to repeat both runs, from seed 0 on.
    """

    shape: str = "pi0"
    draws: int = 4
    steps: int = 2000
    share: float = 0.56
    batch: int | None = None
    learning_rate: float | None = None
    seeds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(2, "draws", "steps")
        self._check_at_least(1, "seeds", "batch")
        if self.shape not in SHAPES:
            nearest = did_you_mean(self.shape, SHAPES)
            raise ConfigError(f"shape must be one of {', '.join(SHAPES)}, got '{self.shape}'.{nearest}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"share must lie above 0 and at most at 1, got {self.share}.")
        if self.learning_rate is not None and not 0 < self.learning_rate <= 1:
            raise ConfigError(f"learning_rate must lie above 0 and at most at 1, got {self.learning_rate}.")


def run_draws(options: DrawsOptions, say: Say = lambda line: None) -> LearningReport:
    """Train with one draw and with several, and compare when they reach the same held-out losses.

    Args:
        options: What to measure.
        say: Told about every stage, since each takes minutes.

    Raises:
        ConfigError: The options do not fit, or the dataset is too small.
        VlaError: See `vla.train.loop.train`.
    """
    with workplace(options, say) as place:
        runs = place.report.runs
        for seed in range(options.seeds):
            one, several = _recipes(options, place.dataset, place.folder, seed)
            batches = held_out_batches(one)
            for name, recipe in (("1 draw", one), (f"{options.draws} draws", several)):
                say(f"training with {name}, seed {seed}")
                runs.append(_train(name, recipe, batches, options.reads_process_time))
    place.report.findings = findings(runs, options.draws)
    return place.report


def findings(runs: list[Run], draws: int) -> list[Finding]:
    """Return what pairs of runs, with one draw and with several of them, amount to.

    Of several seeds, the mean curves are what the aim is about.

    Args:
        runs: One draw, several draws, one draw, several draws, ...
        draws: How many.
    """
    pairs = [(one.points, several.points) for one, several in zip(runs[::2], runs[1::2], strict=True)]
    mean_one, mean_several = (mean_curve(curves) for curves in zip(*pairs, strict=True))
    found = []
    for loss, title in (("held_out_loss", "held-out loss"), ("held_out_action_loss", "held-out action loss")):
        if len(pairs) > 1:  # two seeds of one recipe end further apart than what is measured
            name = f"{title}, mean of {len(pairs)} seeds: {draws} draws / 1 draw, time to it"
            found.append(Finding(name, [_ratio_of_times(mean_one, mean_several, loss)], AIM))
        name = f"{title}: {draws} draws / 1 draw, time to it"
        ratios = [_ratio_of_times(*curves, loss) for curves in pairs]
        found.append(Finding(name, ratios, AIM if len(pairs) == 1 else ""))
    per_step = [
        several.step_seconds.median / one.step_seconds.median
        for one, several in zip(runs[::2], runs[1::2], strict=True)
    ]
    return [*found, Finding(f"{draws} draws / 1 draw, time of a step", per_step)]


def _ratio_of_times(one: Sequence[Point], several: Sequence[Point], loss: str) -> float | None:
    """Return the share of the time to one curve's last loss that the other takes.

    None if it never gets there, or if the first curve was there before its clock ran.
    """
    target = one[-1].losses[loss]
    base = seconds_to_reach(one, loss, target)
    reached = seconds_to_reach(several, loss, target)
    return reached / base if base and reached is not None else None


def _recipes(options: DrawsOptions, dataset: Path, folder: Path, seed: int) -> tuple[Recipe, Recipe]:
    """Return the demo's recipe with one draw, and with several in fewer steps."""

    def recipe(draws: int, steps: int, *extra: str) -> Recipe:
        overrides = [
            *SHAPES[options.shape],
            f"data.path={dataset}",
            f"output={folder / f'{draws}-{seed}'}",
            f"train.seed={seed}",
            f"train.draws_per_observation={draws}",
            f"train.steps={steps}",
            f"train.warmup_steps={round(WARMUP * steps)}",
        ]
        overrides += [] if options.batch is None else [f"train.batch_size={options.batch}"]
        return load_recipe(path, [*overrides, *WATCHED, *extra])

    rate = [] if options.learning_rate is None else [f"train.learning_rate={options.learning_rate}"]
    with as_file(files("vla.demo") / "detour.yaml") as path:
        fewer = max(2, round(options.share * options.steps))
        return recipe(1, options.steps), recipe(options.draws, fewer, *rate)


def _train(name: str, recipe: Recipe, batches: list[Batch], process: bool) -> Run:
    steps = recipe.train.steps
    watch = Watch(process, batches, every=max(1, steps // LOOKS), last=steps)
    train_watched(recipe, watch)
    seconds = Timing.of(watch.step_seconds)
    return Run(name, recipe.train.seed, steps, recipe.train.batch_size, seconds, watch.points)
