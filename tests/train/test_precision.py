import pytest
import torch
from torch import nn

from vla.errors import ConfigError
from vla.nn.norms import AdaptiveRMSNorm, RMSNorm
from vla.policies.flow.training import FlowOutput
from vla.train.checkpoint.folder import RunFolder
from vla.train.loop import Loop
from vla.train.optim import make_optimizer
from vla.train.precision import check_trained_weights, set_matmul_precision
from vla.train.recipe import TrainSection


@pytest.fixture
def loop(tiny):
    recipe = tiny("train.precision=bf16")
    return Loop(recipe, RunFolder(recipe.output), None, None)


def dtypes(tensors):
    return {tensor.dtype for tensor in tensors}


def test_weights_gradients_and_moments_are_float32_under_bf16(loop):
    parameters = list(loop.job.policy.parameters())
    assert dtypes(parameters) == {torch.float32}
    seen = {}
    inner = loop.optimizer.step

    def step():
        seen["gradients"] = dtypes(p.grad for p in parameters if p.grad is not None)
        inner()

    loop.optimizer.step = step
    loop._take_step()
    assert seen["gradients"] == {torch.float32}
    assert dtypes(parameters) == {torch.float32}
    moments = [state[key] for state in loop.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert moments
    assert dtypes(moments) == {torch.float32}


def test_passes_are_autocast_whatever_wraps_the_policy(loop):
    """Accelerate leaves a model under FSDP2 as it is."""
    seen = []

    class Bare(torch.nn.Module):
        def forward(self, **batch):
            seen.append(
                torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
            )
            return FlowOutput(loss=torch.zeros(()))

    loop.model = Bare()
    loop._forward({}, 0)
    loop._validate()
    assert len(seen) > 1
    assert all(seen)


def test_products_are_bf16_and_islands_are_float32(loop):
    """What the forward pass really computes in, seen from hooks."""
    policy, seen = loop.job.policy, {}

    def note(name):
        def hook(module, inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            seen.setdefault(name, set()).add(first.dtype)

        return hook

    model = policy.model
    model.expert.layers[0].mlp.register_forward_hook(note("mlp"))
    model.expert.layers[0].self_attn.q_proj.register_forward_hook(note("q_proj"))
    model.language_model.layers[0].self_attn.q_proj.register_forward_hook(note("q_proj"))
    batch, _ = loop._next_batch()
    output = loop._forward(batch, 0)
    assert seen == {"mlp": {torch.bfloat16}, "q_proj": {torch.bfloat16}}
    losses = (output.loss, output.action_loss, output.text_loss, output.velocity)
    assert dtypes(losses) == {torch.float32}


@pytest.mark.parametrize("adaptive", [False, True])
def test_norms_sum_their_squares_in_float32(adaptive):
    """256 ones after a 16: in bfloat16 the running sum of squares stops at 256 + 1 = 256."""
    x = torch.cat([torch.tensor([16.0]), torch.ones(256)])[None, None].bfloat16()
    width = x.shape[-1]
    with torch.autocast("cpu", torch.bfloat16):
        if adaptive:
            found, _ = AdaptiveRMSNorm(width, 4)(x, torch.zeros(1, 1, 3 * width))
        else:
            found = RMSNorm(width)(x)
    exact = (x.double() / (512 / 257) ** 0.5).bfloat16()
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact)


def adamw_from_one(dtype, rate, steps):
    """A weight of 1 under a constant gradient: each of AdamW's updates is the learning rate."""
    weight = nn.Parameter(torch.ones(1, dtype=dtype))
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0, eps=1e-30)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return weight.item()


def test_why_bf16_weights_do_not_learn():
    """Below 1 the numbers of bfloat16 lie 2^-8 apart, so up to half of that, 2^-9, an update is lost."""
    lost, kept = 0.9 * 2**-9, 1.1 * 2**-9
    assert adamw_from_one(torch.bfloat16, lost, 100) == 1.0
    assert adamw_from_one(torch.bfloat16, kept, 1) == 1 - 2**-8
    assert adamw_from_one(torch.float32, lost, 100) == pytest.approx(1 - 100 * lost, rel=1e-5)


def test_trained_weights_of_fewer_bits_are_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16().requires_grad_(False))
    check_trained_weights(model)
    model[1].requires_grad_(True)
    with pytest.raises(
        ConfigError, match=r"'1\.weight' and 1 more .* torch\.bfloat16.*2\^-9.*train\.precision"
    ):
        make_optimizer(model, TrainSection())


@pytest.mark.parametrize(("tf32", "expected"), [(True, "high"), (False, "highest")])
def test_tf32_is_for_cuda_only(monkeypatch, tf32, expected):
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_matmul_precision(TrainSection(tf32=tf32))
    assert asked == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    set_matmul_precision(TrainSection(tf32=tf32))
    assert asked == [expected]
