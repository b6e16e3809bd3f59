"""The demo's report for people, and the same numbers for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla.atomic import atomic_write
from vla.demo.evaluation import EXECUTE, Episodes, share_said
from vla.demo.twins import Trained
from vla.eval.envs.detour_figures import Fan, fan_figure, overlay_figure, trajectories_figure
from vla.eval.envs.detour_report import DetourReport, followed_share
from vla.eval.figures import curves_figure
from vla.eval.outcome import EpisodeResult, Summary
from vla.eval.report import (
    Card,
    FigureBlock,
    Report,
    TableBlock,
    TextBlock,
    VideoBlock,
    describe_machine,
    format_percent,
    write_report,
)
from vla.eval.video import encode_video, film_strip
from vla.machine import cores

FLOW, REGRESSION = "flow", "regression"
SMOOTH = 0.7
DETOUR_REPORT = DetourReport()
TITLES = {FLOW: "flow matching", REGRESSION: "mean squared error"}


@dataclass(frozen=True)
class DemoResults:
    """Everything that was measured.

    Attributes:
        seed: Seed of demonstrations, training and evaluation.
        demonstrations: Episodes recorded.
        frames: Frames recorded.
        parameters: Number of parameters of each twin.
        trained: The two runs by name, `FLOW` and `REGRESSION`.
        episodes: Evaluation episodes by name and condition.
        fans: Chunks sampled at one decision point.
        seconds: Wall-clock of each part, by name, in order.
        levels: Level that sampled each policy's episodes, by name.
    """

    seed: int
    demonstrations: int
    frames: int
    parameters: int
    trained: Mapping[str, Trained]
    episodes: Mapping[str, Episodes]
    fans: list[Fan]
    seconds: Mapping[str, float]
    levels: Mapping[str, str] = field(default_factory=dict)

    def summaries(self, name: str) -> dict[str, Summary]:
        """Return one policy's counts by condition."""
        return {condition: DETOUR_REPORT.summarize(rows) for condition, rows in self.episodes[name].items()}


def to_summary(results: DemoResults) -> dict[str, Any]:
    """Return the numbers of `summary.json`."""
    policies = {}
    for name in TITLES:
        summaries = results.summaries(name)
        trained = results.trained[name]
        last = {key: value for record in trained.records for key, value in record.items()}
        policies[name] = {
            "conditions": {condition: one.to_json() for condition, one in summaries.items()},
            "followed_rate": followed_share(summaries),
            "said_the_side_passed": _said(results, name),
            "level": results.levels.get(name, "plain"),
            "training_seconds": trained.seconds,
            "last_metrics": last,
        }
    return {
        "seed": results.seed,
        "demonstrations": {"episodes": results.demonstrations, "frames": results.frames},
        "parameters": results.parameters,
        "execute": EXECUTE,
        "layouts": len(results.episodes[FLOW]["unstated"]),
        "policies": policies,
        "seconds": dict(results.seconds),
        "machine": describe_machine(),
    }


def write_results(folder: Path, results: DemoResults) -> None:
    """Write `report.html`, `episodes.mp4` and `summary.json` into the folder."""
    film = film_of({TITLES[name]: results.episodes[name]["unstated"] for name in TITLES})
    atomic_write(folder / "episodes.mp4", film)
    write_report(folder / "report.html", _report(results, film))
    atomic_write(folder / "summary.json", json.dumps(to_summary(results), indent=2) + "\n")


def _report(results: DemoResults, film: bytes) -> Report:
    flow, twin = results.summaries(FLOW), results.summaries(REGRESSION)
    rows = [
        (TITLES[name], f"side {condition}", one)
        for name in TITLES
        for condition, one in results.summaries(name).items()
    ]
    ways = {TITLES[name]: results.episodes[name]["unstated"] for name in TITLES}
    return Report(
        title="A pi-0 learns a detour",
        lead=(
            f"{results.demonstrations} demonstrations go round a cup, half of them on either side. A pi-0 of "
            f"{results.parameters / 1e6:.2f} million parameters learned from images, words and the "
            "gripper's position, by flow matching; its twin, the same network on the same data for as many "
            "steps, with a mean-squared-error head. Both were then tried on layouts that neither had seen."
        ),
        cards=_cards(flow, twin, sum(results.seconds.values())),
        blocks=[
            DETOUR_REPORT.success_block(f"Success on {flow['unstated'].episodes} unseen layouts", rows),
            FigureBlock(
                "The decision",
                fan_figure(results.fans),
                "Chunks sampled from one observation that leaves the side open. The mean of two good ways is "
                "a bad one.",
            ),
            FigureBlock("All ways, side unstated", overlay_figure(ways), "Moved onto one cup."),
            FigureBlock("The same layouts", trajectories_figure(ways), "Side unstated."),
            VideoBlock("Episodes", film, "Side unstated; a row for each policy, a column for each layout."),
            FigureBlock("Action loss", curves_figure(_curves(results, "action_loss"), smooth=SMOOTH)),
            FigureBlock(
                "Held-out action loss", curves_figure(_curves(results, "validation_action_loss"), smooth=0)
            ),
            FigureBlock(
                "Text loss: the side that is taken",
                curves_figure(_curves(results, "text_loss"), smooth=SMOOTH),
            ),
            _what_it_says(results),
            _timing(results),
        ],
    )


def _cards(flow: Mapping[str, Summary], twin: Mapping[str, Summary], seconds: float) -> list[Card]:
    low, high = flow["unstated"].interval
    left = flow["unstated"].extra["left_share"]
    return [
        Card(
            format_percent(flow["unstated"].success_rate),
            "success of flow matching, side unstated",
            f"95 %: {format_percent(low)} to {format_percent(high)}",
        ),
        Card(format_percent(followed_share(flow)), "stated sides followed"),
        Card("-" if left is None else format_percent(left), "pass on the left when free to choose"),
        Card(format_percent(twin["unstated"].success_rate), "success of mean squared error, side unstated"),
        Card(f"{seconds / 60:.1f} min", "from nothing to this report"),
    ]


def _curves(results: DemoResults, name: str) -> dict[str, tuple[list[float], list[float]]]:
    return {TITLES[key]: trained.curve(name) for key, trained in results.trained.items()}


def _what_it_says(results: DemoResults) -> TextBlock:
    lines = [
        f"{TITLES[name]}: "
        + ", ".join(
            f"{'-' if share is None else format_percent(share)} (side {condition})"
            for condition, share in _said(results, name).items()
        )
        for name in TITLES
    ]
    intro = (
        "At its second prediction, next to the cup, the policy names the side that it passes in this share "
        "of the episodes that get so far:"
    )
    return TextBlock("What it says", [intro, *lines])


def _said(results: DemoResults, name: str) -> dict[str, float | None]:
    return {condition: share_said(rows) for condition, rows in results.episodes[name].items()}


def _timing(results: DemoResults) -> TableBlock:
    rows = [[part, f"{seconds:.1f}"] for part, seconds in results.seconds.items()]
    rows.append(["in all", f"{sum(results.seconds.values()):.1f}"])
    note = f"The two trainings ran side by side on {cores()} cores."
    return TableBlock("Time", ["part", "seconds"], rows, note)


def film_of(episodes: Mapping[str, Sequence[EpisodeResult]]) -> bytes:
    """Return an mp4 of the episodes that were filmed: a row for each policy, a column for each layout."""
    filmed = {name: [one for one in rows if one.frames is not None] for name, rows in episodes.items()}
    clips = [[one.frames for one in rows if one.frames is not None] for rows in filmed.values()]
    verdicts = [[one.success for one in rows] for rows in filmed.values()]
    return encode_video(film_strip(clips, list(filmed), verdicts))
