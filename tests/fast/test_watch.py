"""Whatever moves weights is noticed, once."""

import peft
import pytest
import torch
from torch import nn

from vla.fast.levels import FormError
from vla.fast.watch import WeightsWatch, check_hooks


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


def _adapted():
    torch.manual_seed(0)
    options = {"target_modules": ["0"], "modules_to_save": ["1"], "init_lora_weights": False}
    model = peft.get_peft_model(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), peft.LoraConfig(**options))
    model.add_adapter("other", peft.LoraConfig(**options))
    return model


SWITCHES = {
    "off": lambda model: model.base_model.disable_adapter_layers(),
    "another": lambda model: model.set_adapter("other"),
    "scaled": lambda model: model.base_model.model[0].scale_layer(0.5),
    "scaling": lambda model: setattr(model.base_model.model[0], "scaling", {"default": 3.0, "other": 1.0}),
    "merged": lambda model: model.merge_adapter(),
    "hook": lambda model: model.base_model.model[1].register_forward_hook(lambda *given: None),
    "pre-hook": lambda model: model.base_model.model[1].register_forward_pre_hook(lambda *given: None),
    "forward": lambda model: setattr(model.base_model.model[1], "forward", lambda x: x),
}


@pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES)
def test_adapters_and_hooks_are_noticed_once(switch):
    model = _adapted()
    watch = WeightsWatch(model)
    assert not watch.changed()
    switch(model)
    assert watch.changed()
    assert not watch.changed()


def test_an_adapter_that_is_off_for_a_while_is_noticed_twice():
    model = _adapted()
    watch = WeightsWatch(model)
    with model.disable_adapter():
        assert watch.changed()
    assert watch.changed()
    assert not watch.changed()


def test_a_layer_with_a_hook_has_no_form():
    module = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    module[0].register_forward_hook(lambda *given: None)  # embeddings run as they are
    module.register_forward_hook(lambda *given: None)
    check_hooks(module)
    said = r"Its module '1' \(Linear\) has a forward hook"
    with module[1].register_forward_hook(lambda *given: None), pytest.raises(FormError, match=said):
        check_hooks(module)
    module[1].forward = lambda x: x
    with pytest.raises(FormError, match=r"Its module '1' \(Linear\) has a forward of its own"):
        check_hooks(module)


@torch.inference_mode()
def test_weights_made_in_inference_mode():
    module = nn.Linear(6, 5)
    watch = WeightsWatch(module)
    assert not watch.changed()
    with torch.inference_mode():
        module.weight.mul_(2)
    assert watch.changed()
