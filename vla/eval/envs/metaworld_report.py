"""Meta-World's part of an evaluation: a condition for each task, and how episodes ended."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vla.eval.envs.metaworld import INSTRUCTIONS
from vla.eval.envs.report import EnvironmentReport
from vla.eval.outcome import EpisodeResult, Summary

ENDINGS = ("success", "timed out", "never came near", "dropped", "hung", "crashed")
"""How an episode may end."""


class MetaWorldReport(EnvironmentReport):
    """Success by task, and the shapes of failure."""

    conditions: ClassVar[Mapping[str, Mapping[str, Any]]] = {name: {"task": name} for name in INSTRUCTIONS}
    condition_header: ClassVar[str] = "task"
    note: ClassVar[str] = "Success as Meta-World counts it. Intervals are Wilson's, 95 %."

    def conditions_with(self, arguments: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """Return the tasks that the environment is made with."""
        return {str(name): {"task": name} for name in arguments.get("tasks", self.conditions)}

    def count(self, results: Sequence[EpisodeResult]) -> dict[str, Any]:
        """Return how many episodes ended in each way."""
        return {"endings": dict(Counter(ending(result) for result in results))}

    def columns(self, summary: Summary) -> dict[str, str]:
        """Return the failures in words."""
        endings = summary.extra["endings"]
        return {"failures": ", ".join(f"{endings[name]} {name}" for name in ENDINGS[1:] if name in endings)}


def ending(result: EpisodeResult) -> str:
    """Return how an episode ended, one of `ENDINGS`.

    "never came near": the hand stayed 10 cm from the object or more; "dropped": it was lifted, and is not
    any more.
    """
    if result.success:
        return "success"
    if "ended" in result.info:
        return str(result.info["ended"])
    if result.info["was_held"] and not result.info["is_held"]:
        return "dropped"
    return "timed out" if result.info["was_near"] else "never came near"
