"""A tiny dataset and a policy trained on it for two steps, through the command itself."""

import pytest
import torch
import yaml

from tests.data.make import make_dataset
from vla.cli import main

CAMERA = "observation.images.top"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Four episodes of 12 frames: one camera, state of 3, action of 3."""
    return make_dataset(tmp_path_factory.mktemp("data") / "set", length=12, cameras=[CAMERA])


@pytest.fixture(scope="session")
def write_recipe():
    """Write a recipe of two steps that learns from a dataset, and return its path."""

    def write(folder, path, output):
        recipe = {
            "policy": {"preset": "tiny"},
            "data": {"path": str(path), "num_workers": 0, "validation_fraction": 0.25},
            "train": {
                "steps": 2,
                "batch_size": 4,
                "warmup_steps": 1,
                "precision": "no",
                "tensorboard": False,
                "threads": torch.get_num_threads(),
            },
            "output": str(output),
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return str(folder / "recipe.yaml")

    return write


@pytest.fixture(scope="session")
def run(dataset, write_recipe, tmp_path_factory):
    """A finished run's folder; read only."""
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", write_recipe(folder, dataset, folder / "run")]) == 0
    return folder / "run"
