"""A training step as a piece of work, and whether it fits."""

from collections.abc import Callable

import torch
from torch import nn

from vla.bench.machine import free_memory
from vla.bench.timing import Work


def training_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Work:
    """Return one step: forward, backward, AdamW."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def reason_not_to_train(model: nn.Module, device: torch.device) -> str | None:
    """Say why a training step does not fit into memory, or return None.

    Gradients and AdamW's two moments come on top of the weights; activations are not counted.
    """
    needed = 3 * sum(p.numel() * p.element_size() for p in model.parameters())
    free = free_memory(device)
    if free is None or needed <= free:
        return None
    return (
        f"gradients and AdamW's moments take {needed / 1e9:.1f} GB on top of the weights, "
        f"and {free / 1e9:.1f} GB are free"
    )
