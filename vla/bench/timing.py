"""Medians of interleaved runs, so that what disturbs one candidate disturbs all."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Work = Callable[[], object]

MIN_ROUNDS, MAX_ROUNDS = 3, 15
SECONDS_PER_PART = 4.0


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of the rounds, and the quartiles around it."""

    median: float
    lower: float
    upper: float
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        """Summarise the rounds, at least one."""
        quartiles = torch.tensor(seconds, dtype=torch.float64).quantile(
            torch.tensor([0.25, 0.5, 0.75]).double()
        )
        lower, median, upper = quartiles.tolist()
        return cls(median, lower, upper, len(seconds))


@dataclass(frozen=True)
class Clock:
    """What is read before and after: wall-clock time, or the seconds this process spent on its processor.

    Attributes:
        device: Work queued there is waited for.
        process: Read the process' own time, which other programs do not disturb.
    """

    device: torch.device
    process: bool = False

    def seconds(self, work: Work) -> float:
        """Run `work` once and return what it took."""
        now = time.process_time if self.process else time.perf_counter
        self._wait()
        start = now()
        work()
        self._wait()
        return now() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(works: Mapping[str, Work], clock: Clock, rounds: int | None = None) -> dict[str, Timing]:
    """Time every work in turn, round after round; the works must be warm.

    Args:
        works: What to run, by name.
        clock: How to time it.
        rounds: Number of rounds; None continues for about `SECONDS_PER_PART` per work, at least three rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    start = time.perf_counter()
    for done in range(rounds or MAX_ROUNDS):
        spent = time.perf_counter() - start
        if rounds is None and done >= MIN_ROUNDS and spent > SECONDS_PER_PART * len(works):
            break
        for name, work in works.items():
            seconds[name].append(clock.seconds(work))
    return {name: Timing.of(taken) for name, taken in seconds.items()}
