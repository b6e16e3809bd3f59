"""Whatever moves weights is noticed, once."""

import pytest
import torch
from torch import nn

from vla.fast.watch import WeightsWatch


def _one_value(module):
    with torch.no_grad():
        module[1].weight[0, 0] += 1


def _another_parameter(module):
    module[1].weight = nn.Parameter(module[1].weight.clone())


def _another_layer(module):
    module[1] = nn.Linear(5, 3)


def _step(kind, **options):
    def step(module):
        module(torch.ones(2, 6)).sum().backward()
        kind(module.parameters(), lr=0.1, **options).step()

    return step


CHANGES = {
    "one value": _one_value,
    "another parameter": _another_parameter,
    "another layer": _another_layer,
    "loaded": lambda module: module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()}),
    "fused AdamW": _step(torch.optim.AdamW, fused=True),
    "fused Adam": _step(torch.optim.Adam, fused=True),
    "fused SGD": _step(torch.optim.SGD, fused=True),
    "foreach": _step(torch.optim.AdamW, foreach=True),
    "average": lambda module: [one.data.mul_(0.9).add_(0.1) for one in module.parameters()],
    "copied": lambda module: module[1].weight.data.copy_(torch.ones(3, 5)),
    "data": lambda module: setattr(module[0].bias, "data", torch.ones(5)),
    "numpy": lambda module: module[1].bias.detach().numpy().fill(3.0),
    "foreach on data": lambda module: torch._foreach_mul_([one.data for one in module.parameters()], 2.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_noticed_once(change):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    watch = WeightsWatch(module)
    assert not watch.changed()
    change(module)
    assert watch.changed()
    assert not watch.changed()


def test_dtypes_shapes_and_what_is_not_a_number_compare():
    module = nn.Module()
    shapes = {"empty": (0,), "one": (), "convolution": (2, 3, 4, 4), "row": (1, 7)}
    for name, shape in shapes.items():
        for dtype in (torch.float32, torch.bfloat16):
            values = torch.full(shape, torch.nan, dtype=dtype)
            setattr(module, f"{name}_{str(dtype)[6:]}", nn.Parameter(values))
    watch = WeightsWatch(module)
    assert not watch.changed()
    module.get_parameter("convolution_bfloat16").data.fill_(1)
    assert watch.changed()
    assert not watch.changed()
