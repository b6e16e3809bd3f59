"""Appended keys and values read as written ones do, and a gradient passes them."""

import torch

from vla.fast.appended import AppendedSlots
from vla.fast.stack import Slots
from vla.nn.gemma import GemmaConfig

CONFIG = GemmaConfig(width=8, depth=2, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=4)


def slots() -> Slots:
    made = Slots(CONFIG, 2, 5, torch.float32, torch.device("cpu"))
    made.tensor.copy_(torch.randn(made.tensor.shape, generator=torch.Generator().manual_seed(1)))
    return made


def test_they_read_as_if_written_in_place():
    new = torch.randn(2, 1, 2, 4)
    written, untouched = slots(), slots()
    appended = AppendedSlots(untouched, 3)
    for layer in range(2):
        written.write(layer, 3, new * (layer + 1), -new)
        appended.write(layer, 3, new * (layer + 1), -new)
    for layer in range(2):
        for want, made in zip(written.read(layer, 5), appended.read(layer, 5), strict=True):
            assert torch.equal(made, want)
    assert torch.equal(untouched.tensor, slots().tensor)


def test_a_gradient_passes_both_layers():
    new = torch.randn(2, 1, 2, 4, requires_grad=True)
    appended, total = AppendedSlots(slots(), 3), torch.zeros(())
    for layer in range(2):
        appended.write(layer, 3, new, new)
        keys, values = appended.read(layer, 5)
        total = total + (layer + 1) * keys.sum() + 10 * values.sum()
    (gradient,) = torch.autograd.grad(total, new)
    assert torch.equal(gradient, torch.full_like(new, 1 + 2 + 20))
