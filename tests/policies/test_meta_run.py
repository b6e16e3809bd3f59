"""Passes without values against PyTorch's own shapes and the real modules."""

import pytest
import torch
from torch import nn

from vla.nn.flop_counter import flop_counter
from vla.policies.meta_run import MetaRun, without_values

CALLS = {
    "product": lambda x: x @ x.mT,
    "strided": lambda x: x.transpose(0, 1).contiguous().mul(2),
    "integer": lambda x: x.long() * 2,
    "float": lambda x: x.long() * 2.0,
    "bool": lambda x: x > 0,
    "several": lambda x: torch.cat(torch.topk(x, 2).values.split(1, dim=-1)),
    "list": lambda x: torch.stack(torch.unbind(x)),
    "in place": lambda x: torch.zeros_like(x).add_(x),
    "norm": lambda x: nn.functional.layer_norm(x.bfloat16(), x.shape[-1:]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_what_is_repeated_is_what_pytorch_gives(call):
    run, real = MetaRun(), call(torch.rand(2, 3, 4))
    for _ in range(3):
        with run:
            made = call(torch.empty(2, 3, 4, device="meta"))
        assert (made.shape, made.stride(), made.dtype) == (real.shape, real.stride(), real.dtype)


def test_operations_are_counted_every_time():
    x, w = torch.empty(2, 3, device="meta"), torch.empty(3, 5, device="meta", requires_grad=True)
    run = MetaRun()
    for _ in range(3):
        before = run.flops
        with run:
            (x @ w).sum().backward()
        assert run.flops - before == 2 * 2 * 3 * 5 * 2  # forward, and the gradient of the weights


def test_tensors_with_values_keep_them():
    with MetaRun():
        assert (torch.arange(4) + 1).tolist() == [1, 2, 3, 4]
        assert (torch.arange(4) + 1).tolist() == [1, 2, 3, 4]


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, dtype=torch.bfloat16), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(2))
        self.about, self.call = {"words": ["one"]}, self.first.forward
        self.first.requires_grad_(False)

    def forward(self, x):
        return self.call(x)


def test_a_copy_has_everything_but_values_and_hooks():
    module, fired = Shared(), []
    module.register_forward_hook(lambda *given: fired.append(1))
    twin = without_values(module, [module.about])
    assert twin.first.weight is twin.second.weight
    assert twin.call.__self__ is twin.first
    assert twin.about is module.about
    tensors = zip(
        (*module.parameters(), *module.buffers()), (*twin.parameters(), *twin.buffers()), strict=True
    )
    for real, empty in tensors:
        assert empty.is_meta
        assert (empty.shape, empty.dtype, empty.requires_grad) == (real.shape, real.dtype, real.requires_grad)
        assert real.device.type == "cpu"
    twin(torch.empty(1, 4, dtype=torch.bfloat16, device="meta"))
    assert fired == []


def test_stored_in_few_bits_it_multiplies_as_before():
    class Packed(nn.Linear):
        pass

    packed = Packed(4, 6)
    packed.weight = nn.Parameter(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)
    twin = without_values(nn.Sequential(packed))
    with flop_counter() as counter:
        out = twin(torch.empty(2, 4, device="meta"))
    assert out.shape == (2, 6)
    assert counter.get_total_flops() == 2 * 2 * 4 * 6
    assert not any(parameter.requires_grad for parameter in twin.parameters())
