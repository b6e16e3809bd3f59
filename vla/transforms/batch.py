"""Transformed samples, stacked."""

from collections.abc import Callable, Sequence

import torch

from vla.errors import ShapeError, VlaError
from vla.types import Batch, Sample


def collate(
    samples: Sequence[Sample],
    name_of: Callable[[int], str] = "sample {}".format,
    error: type[VlaError] = ShapeError,
) -> Batch:
    """Stack the tensors of samples; entries of other types are dropped.

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
    return {name: torch.stack([sample[name] for sample in samples]) for name in names}
