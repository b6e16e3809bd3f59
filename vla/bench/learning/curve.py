"""A held-out loss over the seconds of training, and when it got where."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean


@dataclass(frozen=True)
class Point:
    """Held-out losses by name, after so many steps and so many seconds of training."""

    step: int
    seconds: float
    losses: dict[str, float]


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """Return the means, over repetitions that looked after the same steps, of seconds and of losses."""
    return [
        Point(
            points[0].step,
            mean(point.seconds for point in points),
            {name: mean(point.losses[name] for point in points) for name in points[0].losses},
        )
        for points in zip(*curves, strict=True)
    ]


def seconds_to_reach(points: Sequence[Point], name: str, loss: float) -> float | None:
    """Return when a loss first was as low as `loss`, or None where it never was.

    Between two points the loss is taken to fall along a straight line. A curve whose first point is low
    enough already got there by then, which is all that is known.

    Args:
        points: In the order of time.
        name: Which of the losses.
        loss: The one to reach.
    """
    before: Point | None = None
    for point in points:
        if point.losses[name] <= loss:
            if before is None:
                return point.seconds
            fallen = before.losses[name] - point.losses[name]
            share = (before.losses[name] - loss) / fallen
            return before.seconds + share * (point.seconds - before.seconds)
        before = point
    return None
