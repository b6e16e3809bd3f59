"""Outputs of a policy's frozen parts for a frame, which training can store instead of computing them again.

A policy names what may be kept of it (`Policy.cacheable`); training computes it for every frame once, keeps
it on disk, and then gives it to `forward` in the place of what it was made of.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from vla.transforms.base import Pipeline, Transform
from vla.types import Batch, Sample


class Frames(Protocol):
    """The frames that something is to be kept of."""

    @property
    def config(self) -> Any:
        """The policy's config."""
        ...

    @property
    def pipeline(self) -> Pipeline:
        """The policy's pipeline."""
        ...

    @property
    def cameras(self) -> Mapping[str, str]:
        """Camera slot -> key in the dataset."""
        ...

    def __len__(self) -> int:
        """Number of frames."""
        ...

    def samples(self, pipeline: Pipeline, cameras: Mapping[str, str]) -> Iterator[tuple[int, Sample]]:
        """Yield every frame's number in its dataset, and what a pipeline makes of it with these cameras."""
        ...


class Cacheable(ABC):
    """What is kept of a frame: rows of one shape, as many as the frame needs. It holds no state."""

    requires_frozen: ClassVar[str]
    """What must not be trained, and how the recipe says so."""
    replaces: ClassVar[tuple[type[Transform], ...]]
    """Transforms whose work is in what is kept, so that training leaves them out."""

    @abstractmethod
    def modules(self, policy: Any) -> list[nn.Module]:
        """Return the modules of the policy that compute it."""

    @abstractmethod
    def sizes(self, config: Any) -> dict[str, Any]:
        """Return what of the policy's config decides it next to the shapes of the weights, as JSON values."""

    @abstractmethod
    def row(self, config: Any) -> tuple[int, ...]:
        """Return the shape of a row."""

    @abstractmethod
    def upstream(self, pipeline: Pipeline) -> Pipeline:
        """Return the transforms that make what the modules read."""

    @abstractmethod
    def plan(self, frames: Frames) -> tuple[int, str]:
        """Return how many rows all frames have, and a hash of what decides them besides weights and frames.

        What the transforms in `replaces` are set to is hashed elsewhere. No image is opened.

        Raises:
            ConfigError: What is kept would be wrong, or not all that training needs.
        """

    @abstractmethod
    def compute(self, policy: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Return the rows `[r, *row]` of every frame of a batch, from what `upstream` makes."""

    def constants(self, sample: Sample) -> dict[str, Any]:
        """Return JSON values that all frames share and `to_batch` needs, read off one frame's sample."""
        return {}

    @abstractmethod
    def to_batch(self, rows: torch.Tensor, constants: Mapping[str, Any], longest: int) -> Batch:
        """Return a frame's tensors for the policy's `forward`, in the place of what they were made of.

        Args:
            rows: What was kept of the frame, `[r, *row]`.
            constants: What `constants` returned.
            longest: The most rows that any frame has.
        """
