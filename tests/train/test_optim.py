import importlib.util
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from tests.train.conftest import numbers
from vla.errors import ConfigError, MissingDependencyError
from vla.policies.base import decay_groups
from vla.policies.pi0 import Pi0Policy
from vla.train import train
from vla.train.optim import (
    check_sharding,
    learning_rate_at,
    make_optimizer,
    set_learning_rate,
)
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


def grouped(model: nn.Module) -> Any:
    """Give a plain module a policy's default parameter groups."""
    model.parameter_groups = lambda weight_decay: decay_groups(model, weight_decay)
    return model


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
    decaying, rest = decay_groups(toy, 0.1)
    assert {names[id(p)] for p in decaying["params"]} == {"patches.weight", "out.weight"}
    assert {names[id(p)] for p in rest["params"]} == {
        *("tokens.weight", "positions.weight", "patches.bias", "norm.weight", "norm.bias", "out.bias"),
    }
    assert (decaying["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


def test_optimizer_follows_the_recipe():
    train = TrainSection(betas=(0.5, 0.6), eps=1e-3, weight_decay=0.2)
    optimizer = make_optimizer(grouped(Toy()), train)
    set_learning_rate(optimizer, 0.125)
    for group, decay in zip(optimizer.param_groups, (0.2, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"]) == (0.125, (0.5, 0.6), 1e-3)
        assert group["weight_decay"] == decay


def scaled(model, scale):
    """Give a plain module one group with a factor of the learning rate and one without."""
    parameters = list(model.parameters())
    groups = [
        {"params": parameters[:1], "weight_decay": 0.1, "lr_scale": scale},
        {"params": parameters[1:], "weight_decay": 0.0},
    ]
    model.parameter_groups = lambda weight_decay: groups
    return model


def test_a_group_may_scale_the_learning_rate():
    optimizer = make_optimizer(scaled(nn.Linear(3, 2), 0.1), TrainSection())
    set_learning_rate(optimizer, 0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3 * 0.1, 0.3]


def test_a_scaled_group_moves_as_with_that_learning_rate():
    """AdamW's first step is the learning rate, whatever the gradient."""
    model = nn.Linear(3, 2)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(scaled(model, 0.25), TrainSection(weight_decay=0.0))
    optimizer.param_groups[0]["weight_decay"] = 0.0
    set_learning_rate(optimizer, 1e-2)
    take_steps(optimizer, model, 1)
    moved = {name: (parameter - start[name]).abs() for name, parameter in model.named_parameters()}
    torch.testing.assert_close(moved["weight"], torch.full((2, 3), 2.5e-3), rtol=1e-4, atol=0)
    torch.testing.assert_close(moved["bias"], torch.full((2,), 1e-2), rtol=1e-4, atol=0)


def test_scaled_groups_resume_bit_for_bit(tiny, monkeypatch):
    def groups(self, weight_decay):
        vision = {id(one) for one in self.model.vision_tower.parameters()}
        trained = [one for one in self.parameters() if one.requires_grad]
        slow, rest = ([one for one in trained if (id(one) in vision) == which] for which in (True, False))
        return [
            {"params": slow, "weight_decay": weight_decay, "lr_scale": 0.1},
            {"params": rest, "weight_decay": weight_decay},
        ]

    monkeypatch.setattr(Pi0Policy, "parameter_groups", groups)
    overrides = ["train.decay_steps=4", "train.validate_every=null"]
    whole = train(tiny(*overrides, "train.steps=4", output="whole"), progress=False)
    train(tiny(*overrides, "train.steps=2"), progress=False)
    resumed = train(tiny(*overrides, "train.steps=4"), resume=True, progress=False)
    assert numbers(resumed.folder) == numbers(whole.folder)
    saved = torch.load(resumed.checkpoint / "training_state.pt", weights_only=False)
    slow, rest = saved["optimizer"]["param_groups"]
    assert slow["lr"] == pytest.approx(0.1 * rest["lr"])


def has_bitsandbytes():
    return importlib.util.find_spec("bitsandbytes") is not None


needs_bitsandbytes = pytest.mark.skipif(not has_bitsandbytes(), reason="needs the extra quant: bitsandbytes")


def take_steps(optimizer, model, count):
    """Steps down a fixed slope, so that two optimisers see the same gradients."""
    for number in range(count):
        for parameter in model.parameters():
            generator = torch.Generator().manual_seed(number)
            parameter.grad = 1 + 0.1 * torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@needs_bitsandbytes
def test_8bit_adamw_keeps_its_moments_in_bytes_and_steps_alike():
    section = TrainSection(learning_rate=1e-3, warmup_steps=0, optimizer="adamw8bit")
    torch.manual_seed(0)
    start = nn.Linear(64, 64).state_dict()
    ours, theirs = nn.Linear(64, 64), nn.Linear(64, 64)
    ours.load_state_dict(start)
    theirs.load_state_dict(start)
    eight = make_optimizer(grouped(ours), section, min_8bit_size=0)
    take_steps(eight, ours, 10)
    take_steps(make_optimizer(grouped(theirs), section.model_copy(update={"optimizer": "adamw"})), theirs, 10)
    for state in eight.state.values():
        assert {state["state1"].dtype, state["state2"].dtype} == {torch.uint8}
    assert ours.weight.dtype == torch.float32
    # 10 steps of about the learning rate each, of which eight bits keep all but a few percent.
    moved = start["weight"] - theirs.weight
    assert moved.mean().item() == pytest.approx(1e-2, rel=0.05)
    assert (ours.weight - theirs.weight).abs().max() < 0.05 * moved.abs().max()


@needs_bitsandbytes
def test_small_tensors_keep_float32_moments():
    model = nn.Linear(64, 64)
    optimizer = make_optimizer(grouped(model), TrainSection(optimizer="adamw8bit"))
    take_steps(optimizer, model, 1)
    assert optimizer.state[model.weight]["state1"].dtype == torch.uint8
    assert optimizer.state[model.bias]["state1"].dtype == torch.float32


@needs_bitsandbytes
def test_8bit_adamw_resumes_bit_for_bit(tiny):
    overrides = ["train.optimizer=adamw8bit", "train.decay_steps=4", "train.validate_every=null"]
    whole = train(tiny(*overrides, "train.steps=4", output="whole"), progress=False)
    train(tiny(*overrides, "train.steps=2"), progress=False)
    resumed = train(tiny(*overrides, "train.steps=4"), resume=True, progress=False)
    assert numbers(resumed.folder) == numbers(whole.folder)
    ours, theirs = (load_file(run.checkpoint / "model.safetensors") for run in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_8bit_adamw_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vla\[quant\]'"):
        make_optimizer(grouped(Toy()), TrainSection(optimizer="adamw8bit"))


def test_8bit_adamw_refuses_shards(monkeypatch):
    monkeypatch.setattr("vla.train.optim.DTensor", nn.Parameter)
    check_sharding(Toy(), TrainSection())
    with pytest.raises(ConfigError, match="FSDP2"):
        check_sharding(Toy(), TrainSection(optimizer="adamw8bit"))
