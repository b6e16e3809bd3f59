"""Transformed samples, stacked: the tensors of a batch, and next to them what the host should know of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch

from vla.errors import ShapeError, VlaError
from vla.transforms.base import FACTS
from vla.types import Sample


class Collated(dict[str, torch.Tensor]):
    """Keyword tensors of a policy, `[b, ...]`, and plain values of their samples.

    Attributes:
        facts: By name, a list with the value of every sample (None where it has none): `text_length`,
            `cameras_present`. They are known without asking the device for anything.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor] | None = None, facts: Mapping[str, list[Any]] | None = None
    ) -> None:
        super().__init__(tensors or {})
        self.facts: dict[str, list[Any]] = dict(facts or {})

    def to(self, device: torch.device | str, **options: Any) -> Self:
        """Return the batch with its tensors on a device; `options` are those of `torch.Tensor.to`."""
        moved = {name: tensor.to(device, **options) for name, tensor in self.items()}
        return type(self)(moved, self.facts)


def collate(
    samples: Sequence[Sample],
    name_of: Callable[[int], str] = "sample {}".format,
    error: type[VlaError] = ShapeError,
) -> Collated:
    """Stack the tensors of samples and gather their facts; entries of other types are dropped.

    Args:
        samples: At least one, transformed.
        name_of: What to call a sample in a message, by its place.
        error: What to raise.

    Raises:
        ShapeError: The samples differ in their tensors or in the shapes of these (or `error`, if given).
    """
    first = samples[0]
    names = [name for name, value in first.items() if isinstance(value, torch.Tensor)]
    for place, sample in enumerate(samples):
        for name in names:
            if name not in sample:
                called = name_of(place)
                raise error(f"{called[0].upper()}{called[1:]} has no '{name}', others of its batch do.")
            if sample[name].shape != first[name].shape:
                raise error(
                    f"'{name}' has shape {list(sample[name].shape)} in {name_of(place)}, but "
                    f"{list(first[name].shape)} in {name_of(0)}: samples of one batch must be alike."
                )
    tensors = {name: torch.stack([sample[name] for sample in samples]) for name in names}
    facts = [sample.get(FACTS, {}) for sample in samples]
    known = dict.fromkeys(name for one in facts for name in one)
    return Collated(tensors, {name: [one.get(name) for one in facts] for name in known})
