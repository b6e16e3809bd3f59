"""Detour's part of an evaluation: collisions, the sides that were passed, and the ways taken."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vla.eval.envs.report import EnvironmentReport
from vla.eval.outcome import EpisodeResult, Summary

if TYPE_CHECKING:
    from vla.eval.report import FigureBlock


class DetourReport(EnvironmentReport):
    """Detour's three instructions, and how its sides are counted.

    A side counts only in a successful episode: a policy that grazes the cup has not chosen a way round it.
    """

    conditions: ClassVar[dict[str, dict[str, Any]]] = {
        "unstated": {"side": None},
        "left": {"side": "left"},
        "right": {"side": "right"},
    }
    condition_header: ClassVar[str] = "instruction"
    note: ClassVar[str] = (
        "Success: the target is reached and the cup is never touched. Intervals are Wilson's, 95 %. Sides "
        "are those of successful episodes; a stated side counts as followed only in a successful episode."
    )

    def count(self, results: Sequence[EpisodeResult]) -> dict[str, Any]:
        """Return collisions and sides.

        `left` and `right` are the sides that successful episodes passed, `left_share` the share of the left
        among them (None without one); `stated` are the episodes whose instruction stated a side, `followed`
        those of them that passed on that side and did the task, `followed_rate` their share (None without
        one).
        """
        passed = [result.info["side_passed"] for result in results if result.success]
        left, right = passed.count("left"), passed.count("right")
        stated = [result for result in results if result.info["stated_side"] is not None]
        followed = sum(
            result.success and result.info["side_passed"] == result.info["stated_side"] for result in stated
        )
        return {
            "collisions": sum(result.info["collided"] for result in results),
            "left": left,
            "right": right,
            "stated": len(stated),
            "followed": followed,
            "followed_rate": followed / len(stated) if stated else None,
            "left_share": left / (left + right) if left + right else None,
        }

    def columns(self, summary: Summary) -> dict[str, str]:
        """Return collisions and shares."""
        return {
            "collided": str(summary.extra["collisions"]),
            "left of passes": _percent(summary.extra["left_share"]),
            "side followed": _percent(summary.extra["followed_rate"]),
        }

    def detailed_columns(self, summary: Summary) -> dict[str, str]:
        """Return collisions, and the counts behind the shares."""
        extra = summary.extra
        followed = f"{extra['followed']} / {extra['stated']} = {_percent(extra['followed_rate'])}"
        return {
            "collisions": str(extra["collisions"]),
            "left / right": f"{extra['left']} / {extra['right']}",
            "stated side followed": followed if extra["stated"] else "\N{EM DASH}",
        }

    def figures(self, results: Mapping[str, Sequence[EpisodeResult]]) -> "list[FigureBlock]":
        """Return all ways in one panel per condition, and the first layouts one by one."""
        from vla.eval.envs.detour_figures import overlay_figure, trajectories_figure
        from vla.eval.report import FigureBlock

        return [
            FigureBlock("Ways round the cup", overlay_figure(results), "All ways, moved onto one cup."),
            FigureBlock("The same layouts", trajectories_figure(results), "Rows are conditions."),
        ]


def followed_share(summaries: Mapping[str, Summary]) -> float:
    """Return the share of episodes with a stated side that did the task on that side, over all conditions."""
    counts = [one.extra for one in summaries.values()]
    return sum(one["followed"] for one in counts) / sum(one["stated"] for one in counts)


def _percent(share: float | None) -> str:
    from vla.eval.report import format_percent

    return "" if share is None else format_percent(share)
