"""Episodes in a simulated environment for `vla eval`: run, count, and write down what happened."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.cli.console import console, progress_bar
from vla.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from vla.eval.outcome import EpisodeResult, Summary
    from vla.policies.robot import RobotPolicy

SIDES: dict[str, str | None] = {"unstated": None, "left": "left", "right": "right"}
"""What Detour's instruction may say, and the reset option that makes it say so."""


@dataclass(frozen=True)
class Rollouts:
    """What to run.

    Attributes:
        env: Gymnasium id.
        episodes: Episodes per condition; seeds count up from `seed`, the same for every condition.
        seed: First seed, and the seed of the policy's noise.
        sides: Detour's conditions by name (see `SIDES`); empty for an environment without sides.
        execute: Actions executed of each chunk.
        batch_size: Episodes run at once.
        film: Episodes of each condition that are filmed.
    """

    env: str
    episodes: int
    seed: int
    sides: Sequence[str]
    execute: int
    batch_size: int
    film: int


def choose_sides(env: str, side: str | None) -> list[str]:
    """Return the conditions to run: all of them on Detour unless one is asked for.

    Raises:
        ConfigError: An unknown side, or a side for an environment that has none.
    """
    from vla.eval.envs import DETOUR, DETOUR_SECOND

    if env not in (DETOUR, DETOUR_SECOND):
        if side is not None:
            raise ConfigError(f"--side is about {DETOUR}; the environment {env} has no sides.")
        return []
    if side is None:
        return list(SIDES)
    if side not in SIDES:
        raise ConfigError(f"--side is one of {', '.join(SIDES)}; got '{side}'.{did_you_mean(side, SIDES)}")
    return [side]


def run_conditions(policy: "RobotPolicy", plan: Rollouts) -> dict[str, list["EpisodeResult"]]:
    """Run every condition and return its episodes by name.

    Raises:
        ConfigError: There is no such environment, or it does not fit (see `vla.eval.rollout`).
    """
    import gymnasium
    import torch

    import vla.eval.envs  # noqa: F401 (registers vla's own environments)
    from vla.eval.rollout import rollout

    def make_env() -> gymnasium.Env:
        try:
            return gymnasium.make(plan.env, render_mode="rgb_array" if plan.film else None)
        except (gymnasium.error.Error, ModuleNotFoundError) as error:
            hint = did_you_mean(plan.env, gymnasium.registry)
            raise ConfigError(f"The environment '{plan.env}' cannot be made: {error}.{hint}") from error

    seeds = range(plan.seed, plan.seed + plan.episodes)
    results = {}
    for name in plan.sides or ["episodes"]:
        with progress_bar(name) as progress:
            results[name] = rollout(
                make_env,
                policy,
                seeds,
                {"side": SIDES[name]} if plan.sides else None,
                execute=plan.execute,
                batch_size=plan.batch_size,
                generator=torch.Generator(policy.policy.device).manual_seed(plan.seed),
                film=plan.film,
                progress=progress,
            )
    return results


def show_success(results: "dict[str, list[EpisodeResult]]") -> "dict[str, Summary]":
    """Count over each condition's episodes, print the table, and return the counts."""
    from rich.table import Table

    from vla.eval.outcome import summarize
    from vla.eval.report import format_percent

    summaries = {name: summarize(rows) for name, rows in results.items()}

    table = Table(title="success, with 95 % intervals", title_justify="left")
    for column in (
        "condition",
        "episodes",
        "success",
        "interval",
        "collided",
        "left of passes",
        "side followed",
    ):
        table.add_column(column, justify="left" if column == "condition" else "right")
    for name, one in summaries.items():
        low, high = one.interval
        table.add_row(
            name,
            str(one.episodes),
            format_percent(one.success_rate),
            f"{format_percent(low)} to {format_percent(high)}",
            str(one.collisions),
            "" if one.left_share is None else format_percent(one.left_share),
            "" if one.followed_rate is None else format_percent(one.followed_rate),
        )
    console().print(table)
    return summaries


def write_results(
    folder: Path,
    checkpoint: str,
    pipeline: str | None,
    plan: Rollouts,
    results: "dict[str, list[EpisodeResult]]",
    summaries: "dict[str, Summary]",
) -> None:
    """Write report.html, summary.json and, where episodes were filmed, episodes.mp4 into a folder."""
    from vla.eval.report import Report, SuccessBlock, SuccessRow, VideoBlock, write_report

    rows = [SuccessRow(Path(checkpoint).name, name, one) for name, one in summaries.items()]
    blocks: list[Any] = [SuccessBlock("Success", rows)]
    blocks += _figures(plan, results)
    if plan.film:
        film = _film(results)
        (folder / "episodes.mp4").write_bytes(film)
        blocks.append(VideoBlock("Episodes", film, "Rows are conditions, columns are layouts."))
    acting = checkpoint if pipeline is None else f"{checkpoint} as {pipeline}"
    lead = (
        f"{plan.episodes} episodes of {plan.env} per condition, seeds from {plan.seed}, "
        f"{plan.execute} actions executed of each predicted chunk."
    )
    write_report(folder / "report.html", Report(f"Evaluation of {acting}", lead, blocks=blocks))
    numbers = {
        "checkpoint": checkpoint,
        "pipeline": pipeline,
        "env": plan.env,
        "seed": plan.seed,
        "execute": plan.execute,
        "conditions": {name: one.to_json() for name, one in summaries.items()},
    }
    (folder / "summary.json").write_text(json.dumps(numbers, indent=2) + "\n")


def _figures(plan: Rollouts, results: "dict[str, list[EpisodeResult]]") -> list[Any]:
    """Draw the ways that were taken; only Detour says where its cup stood."""
    if not plan.sides:
        return []
    from vla.eval.figures import overlay_figure, trajectories_figure
    from vla.eval.report import FigureBlock

    return [
        FigureBlock("Ways round the cup", overlay_figure(results), "All ways, moved onto one cup."),
        FigureBlock("The same layouts", trajectories_figure(results), "Rows are conditions."),
    ]


def _film(results: "dict[str, list[EpisodeResult]]") -> bytes:
    from vla.eval.video import encode_video, film_strip

    filmed = {name: [one for one in rows if one.frames is not None] for name, rows in results.items()}
    clips = [[one.frames for one in rows if one.frames is not None] for rows in filmed.values()]
    verdicts = [[one.success for one in rows] for rows in filmed.values()]
    return encode_video(film_strip(clips, list(filmed), verdicts))
