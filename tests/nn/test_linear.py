"""Our linear layers against PyTorch's own, with either kernel, values and gradients."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vla.nn import linear as module
from vla.nn.linear import Linear, linear, use_onednn_linear

LARGE = (2, 40, 160, 192)  # rows in two axes, inputs, outputs: above the threshold
has_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="PyTorch without oneDNN",
)


@pytest.fixture
def onednn(monkeypatch):
    """Take oneDNN's kernel whatever the processor, and count its products."""
    calls = []

    def product(x, weight, bias=None):
        calls.append(x.shape)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    monkeypatch.setattr(module, "_machine_prefers_onednn", lambda: True)
    monkeypatch.setattr(module, "_product", product)
    return calls


def operands(bias=True, dtype=torch.float32):
    a, b, i, o = LARGE
    x, weight = torch.randn(a, b, i, dtype=dtype), torch.randn(o, i, dtype=dtype)
    tensors = [x, weight, torch.randn(o, dtype=dtype)] if bias else [x, weight]
    return [t.requires_grad_() for t in tensors]


@has_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_equal_pytorchs(onednn, bias):
    assert LARGE[0] * LARGE[1] * LARGE[2] * LARGE[3] >= module.MIN_MULTIPLICATIONS
    ours = operands(bias)
    out = linear(*ours)
    upstream = torch.randn_like(out)
    gradients = torch.autograd.grad(out, ours, upstream)
    assert len(onednn) == 3
    wide = [t.detach().double().requires_grad_() for t in ours]
    want = nn.functional.linear(*wide)
    torch.testing.assert_close(out.double(), want, atol=1e-4, rtol=1e-5)
    for got, expected in zip(gradients, torch.autograd.grad(want, wide, upstream.double()), strict=True):
        torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-5)


@has_onednn
def test_only_wanted_gradients_are_computed(onednn):
    x, weight, bias = operands()
    linear(x.detach(), weight.detach(), bias).sum().backward()
    assert len(onednn) == 1
    assert bias.grad is not None
    linear(x.detach(), weight, bias.detach()).sum().backward()
    assert len(onednn) == 3


@has_onednn
def test_strided_input_and_checkpointing(onednn):
    x, weight, bias = operands()
    strided = x.detach().transpose(0, 1).requires_grad_()
    out = checkpoint(linear, strided, weight, bias, use_reentrant=False)
    torch.testing.assert_close(out, nn.functional.linear(strided, weight, bias), atol=1e-4, rtol=1e-5)
    out.sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(dim=(0, 1)).expand_as(weight), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["small", "bfloat16", "autocast", "one row", "other processor"])
def test_ordinary_kernel_elsewhere(onednn, monkeypatch, case):
    x, weight, bias = operands(dtype=torch.bfloat16 if case == "bfloat16" else torch.float32)
    if case == "other processor":
        monkeypatch.setattr(module, "_machine_prefers_onednn", lambda: False)
    if case == "small":
        x = x[:1, :1]
    if case == "one row":
        x, weight, bias = torch.randn(2000), torch.randn(2000, 2000), None
    with torch.autocast("cpu", enabled=case == "autocast"):
        out = linear(x, weight, bias)
        assert out.equal(nn.functional.linear(x, weight, bias))
    assert onednn == []


def test_machine_is_asked_once_and_says_yes_or_no():
    assert module._machine_prefers_onednn() in (True, False)
    module._machine_prefers_onednn()
    assert module._machine_prefers_onednn.cache_info().hits > 0


@pytest.mark.parametrize("missing", ["mkl", "avx512"])
def test_machine_without_the_choice_says_no(monkeypatch, missing):
    if missing == "mkl":
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert module._machine_prefers_onednn.__wrapped__() is False


def test_replacing_keeps_names_parameters_and_values():
    stack = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2, bias=False)))
    before, x = stack.state_dict(), torch.randn(5, 3)
    want = stack(x)
    use_onednn_linear(stack)
    assert type(stack[0]) is Linear
    assert type(stack[1][1]) is Linear
    assert stack.state_dict().keys() == before.keys()
    assert stack(x).equal(want)


@has_onednn
def test_torch_func_sees_an_ordinary_operator(onednn):
    x, weight, _ = (t.detach() for t in operands())
    out, tangent = torch.func.jvp(lambda x: linear(x, weight), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(out, nn.functional.linear(x, weight), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(tangent, weight.sum(1).expand_as(tangent), atol=1e-3, rtol=1e-5)
