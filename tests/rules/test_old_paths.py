"""Import paths that docs of earlier versions named still lead to the same things."""

from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("module", "name", "now"),
    [
        ("vla.policies.adapters", "set_adapter", "vla.adapters.lora"),
        ("vla.policies.adapters", "add_adapter", "vla.adapters.lora"),
        ("vla.policies.adapter_files", "load_adapter", "vla.adapters.files"),
        ("vla.policies.adapter_files", "merge", "vla.adapters.files"),
        ("vla.weights.stream", "fill_module", "vla.weights.stream"),
        ("vla.transforms.robots", "load_robot", "vla.transforms.robots"),
        ("vla.policies.registry", "make_config", "vla.policies.registry"),
        ("vla.train.recipe_file", "load_recipe", "vla.train.recipe_file"),
    ],
)
def test_old_path(module, name, now):
    assert getattr(import_module(module), name) is getattr(import_module(now), name)
