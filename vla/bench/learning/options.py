"""What the trainings that are measured have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vla.bench.options import CLOCKS
from vla.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """What both measurements ask for.

    Attributes:
        dataset: What `vla demo` recorded (its `demonstrations/`); None records it anew.
        threads: CPU threads; None keeps PyTorch's.
        clock: "wall", or "process" for the process' own CPU time, which busy neighbours do not disturb.
    """

    dataset: Path | None = None
    threads: int | None = None
    clock: str = "wall"

    def __post_init__(self) -> None:
        if self.clock not in CLOCKS:
            nearest = did_you_mean(self.clock, CLOCKS)
            raise ConfigError(f"clock must be one of {', '.join(CLOCKS)}, got '{self.clock}'.{nearest}")
        if self.clock == "process" and (self.threads != 1 or torch.accelerator.is_available()):
            raise ConfigError(
                "clock 'process' adds up the time of all threads of a CPU, so it needs threads 1 and no GPU."
            )
        self._check_at_least(1, "threads")

    def _check_at_least(self, least: float, *names: str) -> None:
        for name in names:
            value: Any = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}.")

    @property
    def reads_process_time(self) -> bool:
        """Whether the clock is the process' own."""
        return self.clock == "process"
