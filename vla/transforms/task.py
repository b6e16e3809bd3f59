"""The instruction of a robot that does one thing only."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from vla.errors import ConfigError
from vla.transforms.base import Transform
from vla.types import Sample


@dataclass(frozen=True)
class DefaultTask(Transform):
    """An instruction for samples that come without one, or with an empty one.

    Attributes:
        task: The instruction.

    Raises:
        ConfigError: It is empty itself.
    """

    name: ClassVar[str] = "default_task"
    changes_actions: ClassVar[bool] = False

    task: str

    def __post_init__(self) -> None:
        if not self.task.strip():
            raise ConfigError("The default instruction is empty.")

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Set `task` where there is none."""
        return sample if str(sample.get("task", "")).strip() else sample | {"task": self.task}
