import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vla.train.optim import learning_rate_at, make_optimizer, parameter_groups, set_learning_rate
from vla.train.recipe import TrainSection


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 2.4975e-8),
        (500, 1.25125e-5),
        (1000, 2.5e-5),
        (15_500, 1.375e-5),
        (30_000, 2.5e-6),
        (99_999, 2.5e-6),
    ],
)
def test_learning_rate_is_the_published_one(step, rate):
    assert learning_rate_at(step, TrainSection()) == pytest.approx(rate, rel=1e-4)


def test_decay_may_end_elsewhere_than_the_run():
    long = TrainSection(steps=60_000, decay_steps=30_000)
    assert [learning_rate_at(s, long) for s in (700, 15_500, 40_000)] == [
        learning_rate_at(s, TrainSection()) for s in (700, 15_500, 40_000)
    ]


@given(st.integers(0, 300), st.integers(0, 100), st.integers(1, 200))
def test_learning_rate_stays_between_its_ends(step, warmup, steps):
    train = TrainSection(steps=steps, warmup_steps=warmup, learning_rate=1e-3, final_learning_rate=1e-4)
    rate = learning_rate_at(step, train)
    assert 0 < rate <= 1e-3
    if step >= warmup:
        assert rate >= 1e-4 * (1 - 1e-12)


class OwnEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 4))


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = OwnEmbedding()
        self.positions = nn.Embedding(3, 4)
        self.patches = nn.Conv2d(3, 4, 2)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 2)
        self.frozen = nn.Linear(4, 2).requires_grad_(False)


def test_only_matrices_and_kernels_decay():
    toy = Toy()
    names = {id(parameter): name for name, parameter in toy.named_parameters()}
    decaying, rest = parameter_groups(toy, 0.1)
    assert {names[id(p)] for p in decaying["params"]} == {"patches.weight", "out.weight"}
    assert {names[id(p)] for p in rest["params"]} == {
        *("tokens.weight", "positions.weight", "patches.bias", "norm.weight", "norm.bias", "out.bias"),
    }
    assert (decaying["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


def test_optimizer_follows_the_recipe():
    train = TrainSection(betas=(0.5, 0.6), eps=1e-3, weight_decay=0.2)
    optimizer = make_optimizer(Toy(), train)
    set_learning_rate(optimizer, 0.125)
    for group, decay in zip(optimizer.param_groups, (0.2, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"]) == (0.125, (0.5, 0.6), 1e-3)
        assert group["weight_decay"] == decay
