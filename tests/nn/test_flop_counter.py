"""Counted operations against closed forms and PyTorch's own counter; digits against a run without it."""

import torch
from torch import nn

from vla.nn.flop_counter import TrainingFlopCounter, flop_counter


def step(model, x, counter):
    model.zero_grad()
    with counter:
        model(x).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


def test_a_step_costs_what_its_sizes_say():
    model = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 7))
    counter = TrainingFlopCounter()
    step(model, torch.randn(4, 3), counter)
    # Forward, both weights' gradients, and the gradient between the two layers.
    assert counter.total == 2 * 4 * (2 * 3 * 5 + 2 * 5 * 7 + 5 * 7)


def test_counting_a_training_step_changes_no_digit_of_it():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    conv = nn.Sequential(nn.Conv2d(3, 16, 2), nn.SiLU(), nn.Flatten(2))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.attention = conv, attention

        def forward(self, x):
            tokens = self.conv(x).transpose(1, 2)
            return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    model, x = Model(), torch.randn(2, 3, 9, 9)
    plain = [gradient.clone() for gradient in step(model, x, torch.enable_grad())]
    ours, theirs = TrainingFlopCounter(), flop_counter()
    counted = [gradient.clone() for gradient in step(model, x, ours)]
    step(model, x, theirs)
    assert all(torch.equal(a, b) for a, b in zip(plain, counted, strict=True))
    assert ours.total == theirs.get_total_flops() > 0
