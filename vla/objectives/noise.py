"""Standard normal noise from one source of randomness, or from one for each row."""

from collections.abc import Sequence

import torch

Generators = torch.Generator | Sequence[torch.Generator]
"""A source of randomness: of the whole batch, or one for each of its rows."""


def standard_normal(
    shape: tuple[int, ...],
    *,
    generator: Generators | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Draw standard normal noise.

    Args:
        shape: `[b, ...]`.
        generator: Source of randomness. With one for each row, a row does not depend on the others: it is
            what a batch of it alone would be.
        device: Where to draw; must be the generators'.

    Returns:
        float32 of the given shape.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
    rows = [torch.randn(shape[1:], generator=one, device=device, dtype=torch.float32) for one in generator]
    assert len(rows) == shape[0], f"{len(rows)} generators for {shape[0]} rows"
    return torch.stack(rows)
