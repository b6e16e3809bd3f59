"""What an environment adds to the general evaluation: its conditions, its counts, its figures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vla.eval.outcome import EpisodeResult, Summary, summarize

if TYPE_CHECKING:
    from vla.eval.report import FigureBlock, SuccessBlock


class EnvironmentReport:
    """The report of an environment about which only success is known.

    A class for one environment overrides what it has more of; `vla.eval.envs.REPORTS` finds it by id.

    Attributes:
        conditions: The environment's conditions by name, as reset options; empty where there is only one
            way to run it.
        condition_header: Header of the report's column of conditions.
        note: Text below the report's table of success.
    """

    conditions: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    condition_header: ClassVar[str] = "condition"
    note: ClassVar[str] = "Success as the environment counts it. Intervals are Wilson's, 95 %."

    def conditions_with(self, arguments: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """Return the conditions of an environment that is made with these arguments."""
        return self.conditions

    def summarize(self, results: Sequence[EpisodeResult]) -> Summary:
        """Count over the episodes of one policy under one condition.

        Raises:
            ConfigError: There are no episodes.
        """
        return summarize(results, self.count(results))

    def count(self, results: Sequence[EpisodeResult]) -> Mapping[str, Any]:
        """Return what this environment counts besides success: JSON values by name, for `Summary.extra`."""
        return {}

    def columns(self, summary: Summary) -> Mapping[str, str]:
        """Return the cells that the terminal's table gains, by header; the same headers for every summary."""
        return {}

    def detailed_columns(self, summary: Summary) -> Mapping[str, str]:
        """Return the cells that the report's table gains, by header; the terminal's where not overridden."""
        return self.columns(summary)

    def figures(self, results: Mapping[str, Sequence[EpisodeResult]]) -> "list[FigureBlock]":
        """Return what the report draws of the episodes, given by condition."""
        return []

    def success_block(self, heading: str, rows: Sequence[tuple[str, str, Summary]]) -> "SuccessBlock":
        """Return the report's table of success from (policy, condition, counts)."""
        from vla.eval.report import SuccessBlock, SuccessRow

        cells = [SuccessRow(*row, cells=self.detailed_columns(row[-1])) for row in rows]
        return SuccessBlock(heading, cells, self.note, self.condition_header)
