"""Results of adapting the demo's policy to a second robot: the table, the page, and the numbers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.atomic import atomic_write
from vla.demo.evaluation import Episodes
from vla.demo.report import DETOUR_REPORT, SMOOTH, film_of
from vla.demo.twins import Trained
from vla.eval.envs.detour_figures import overlay_figure
from vla.eval.envs.detour_report import followed_share
from vla.eval.figures import curves_figure
from vla.eval.outcome import Summary
from vla.eval.report import (
    Card,
    FigureBlock,
    Report,
    TableBlock,
    VideoBlock,
    describe_machine,
    format_percent,
    write_report,
)
from vla.machine import cores

UNADAPTED, LORA, FULL, SCRATCH = "unadapted", "lora", "full", "scratch"
TITLES = {
    LORA: "LoRA, expert",
    FULL: "full fine-tuning",
    SCRATCH: "from scratch",
    UNADAPTED: "not adapted",
}


@dataclass(frozen=True)
class Way:
    """One way to a policy for the second robot.

    Attributes:
        episodes: The policy's episodes, by condition.
        trained: Parameters that were trained.
        saved: Size of its weight files, bytes.
        run: Its training; None where there was none.
        level: Level that sampled the episodes.
    """

    episodes: Episodes
    trained: int
    saved: int
    run: Trained | None
    level: str = "plain"

    @property
    def overall(self) -> Summary:
        """Counts over all episodes, whatever the instruction."""
        return DETOUR_REPORT.summarize([one for rows in self.episodes.values() for one in rows])

    @property
    def summaries(self) -> dict[str, Summary]:
        """Counts by condition."""
        return {condition: DETOUR_REPORT.summarize(rows) for condition, rows in self.episodes.items()}


@dataclass(frozen=True)
class AdaptingResults:
    """Everything that was measured.

    Attributes:
        seed: Seed of demonstrations, training and evaluation.
        demonstrations: Episodes of the second robot.
        frames: Their frames.
        parameters: Number of parameters of the policy that is adapted.
        ways: By name, see `TITLES`.
        seconds: Wall-clock of each part, by name, in order.
    """

    seed: int
    demonstrations: int
    frames: int
    parameters: int
    ways: Mapping[str, Way]
    seconds: Mapping[str, float]

    def share(self, name: str) -> float:
        """Return which share of the policy's number of parameters was trained."""
        return self.ways[name].trained / self.parameters


def to_table(results: AdaptingResults) -> TableBlock:
    """Return the ways side by side: success and cost."""
    rows = []
    for name, title in TITLES.items():
        way = results.ways[name]
        low, high = way.overall.interval
        rows.append(
            [
                title,
                format_percent(way.overall.success_rate),
                f"{100 * low:.1f} to {100 * high:.1f}",
                format_percent(way.summaries["unstated"].success_rate),
                format_percent(followed_share(way.summaries)),
                f"{way.trained:,} ({format_percent(results.share(name))})",
                f"{way.saved / 1e6:.2f} MB",
                "-" if way.run is None else f"{way.run.seconds:.0f} s",
            ]
        )
    header = ["policy", "success", "95 %", "unstated", "followed", "trained", "file", "training"]
    note = (
        "Success: under all three instructions; where the side is unstated; on the side that is stated. "
        f"The trainings ran side by side on {cores()} cores."
    )
    return TableBlock("A second robot", header, rows, note)


def to_summary(results: AdaptingResults) -> dict[str, Any]:
    """Return the numbers of `summary.json`."""
    ways = {}
    for name, way in results.ways.items():
        ways[name] = {
            "overall": way.overall.to_json(),
            "conditions": {condition: one.to_json() for condition, one in way.summaries.items()},
            "followed_rate": followed_share(way.summaries),
            "trained_parameters": way.trained,
            "trained_share": results.share(name),
            "saved_bytes": way.saved,
            "level": way.level,
            "training_seconds": None if way.run is None else way.run.seconds,
        }
    return {
        "seed": results.seed,
        "demonstrations": {"episodes": results.demonstrations, "frames": results.frames},
        "parameters": results.parameters,
        "layouts": len(results.ways[LORA].episodes["unstated"]),
        "ways": ways,
        "seconds": dict(results.seconds),
        "machine": describe_machine(),
    }


def write_results(folder: Path, results: AdaptingResults) -> None:
    """Write `report.html`, `episodes.mp4` and `summary.json` into the folder."""
    film = film_of({TITLES[name]: results.ways[name].episodes["unstated"] for name in TITLES})
    atomic_write(folder / "episodes.mp4", film)
    write_report(folder / "report.html", _report(results, film))
    atomic_write(folder / "summary.json", json.dumps(to_summary(results), indent=2) + "\n")


def _report(results: AdaptingResults, film: bytes) -> Report:
    lora, full = results.ways[LORA], results.ways[FULL]
    rows = [
        (TITLES[name], f"side {condition}", one)
        for name in TITLES
        for condition, one in results.ways[name].summaries.items()
    ]
    curves = {
        TITLES[name]: way.run.curve("action_loss")
        for name, way in results.ways.items()
        if way.run is not None
    }
    return Report(
        title="A pi-0 changes its robot",
        lead=(
            f"A pi-0 of {results.parameters / 1e6:.2f} million parameters knows the detour for one robot. It "
            f"is given {results.demonstrations} demonstrations ({results.frames} frames) of another, with "
            "other units, other axes, another camera, half as many actions a second."
        ),
        cards=[
            Card(format_percent(lora.overall.success_rate), "success of LoRA"),
            Card(format_percent(full.overall.success_rate), "success of full fine-tuning"),
            Card(format_percent(results.share(LORA)), "of the parameters trained by LoRA"),
            Card(f"{lora.saved / 1e6:.2f} MB", "its file", f"all weights: {full.saved / 1e6:.2f} MB"),
        ],
        blocks=[
            to_table(results),
            DETOUR_REPORT.success_block(f"Success on {len(lora.episodes['unstated'])} unseen layouts", rows),
            FigureBlock(
                "All ways, side unstated",
                overlay_figure({TITLES[name]: results.ways[name].episodes["unstated"] for name in TITLES}),
                "Moved onto one cup; table units.",
            ),
            VideoBlock("Episodes", film, "Side unstated; a row for each policy, a column for each layout."),
            FigureBlock("Action loss", curves_figure(curves, smooth=SMOOTH)),
            TableBlock(
                "Time", ["part", "seconds"], [[part, f"{took:.1f}"] for part, took in results.seconds.items()]
            ),
        ],
    )
