"""What to measure."""

from dataclasses import dataclass
from pathlib import Path

from vla.errors import ConfigError, did_you_mean
from vla.eval.envs.detour_embodiment import FAST, FAST_ABSOLUTE, Embodiment

ROBOTS: dict[str, Embodiment] = {"positions": FAST_ABSOLUTE, "displacements": FAST}
"""Detour at 20 Hz by what an action is."""

ACTIONS = ("positions", "relative", "displacements")
"""What the policy learns: positions, the same relative to the state that a chunk begins at, displacements."""


@dataclass(frozen=True)
class ExecutionOptions:
    """What to measure.

    Args:
        actions: One of `ACTIONS`.
        latency: Seconds that a chunk takes, counted in whole control steps, rounded up.
        execute: Steps between two requests.
        layouts: Layouts that every strategy meets, with the side left open.
        first_layout: Seed of the first.
        steps: Training steps of either policy.
        max_prefix: Longest prefix that the second policy is trained with, steps.
        demonstrations: Episodes to record.
        pace: Range of the demonstrations' speeds over the expert's usual one.
        clearance: Free space that the expert keeps between gripper and cup, table units.
        work: Folder for recordings and runs; what is there is used again. None: a temporary one.
        batch: Episodes at once.
        real_time: Layouts that are met in real time and over the network as well; 0: none.
        seed: Seed of recordings, training and noise.

    Raises:
        ConfigError: A number is out of its range, or `actions` is none of them.
    """

    actions: str = "positions"
    latency: float = 0.2
    execute: int = 6
    layouts: int = 1000
    first_layout: int = 600_000
    steps: int = 4000
    max_prefix: int = 6
    demonstrations: int = 1000
    pace: tuple[float, float] = (0.75, 1.35)
    clearance: float = 0.06
    work: Path | None = None
    batch: int = 50
    real_time: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.actions not in ACTIONS:
            raise ConfigError(
                f"actions must be one of {', '.join(ACTIONS)}, got '{self.actions}'."
                f"{did_you_mean(self.actions, ACTIONS)}"
            )
        for name in ("execute", "layouts", "steps", "max_prefix", "demonstrations", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.real_time <= self.layouts:
            raise ConfigError(f"real_time must lie in 0 to {self.layouts} layouts, got {self.real_time}.")
        if not 0 <= self.latency <= 10:
            raise ConfigError(f"latency must lie in 0 to 10 seconds, got {self.latency}.")

    @property
    def robot(self) -> Embodiment:
        """The robot."""
        return ROBOTS["displacements" if self.actions == "displacements" else "positions"]

    @property
    def delay(self) -> int:
        """Control steps that a chunk takes."""
        steps = self.latency * self.robot.fps
        return int(-(-round(steps, 6) // 1))
