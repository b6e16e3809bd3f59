import pytest
import torch
from safetensors.torch import load_file

from tests.data.make import make_dataset
from vla.train.monitor.metrics import read_metrics
from vla.train.recipe_file import load_recipe

CAMERA = "observation.images.top"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Four episodes of 12 frames, one camera, a response text."""
    return make_dataset(tmp_path_factory.mktemp("data") / "set", length=12, cameras=[CAMERA], response=True)


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(dataset, tmp_path):
    """Make the recipe of a run of a few seconds; keyword `output` is its folder's name."""

    def make(*overrides, output="run"):
        return load_recipe(None, [*tiny_overrides(dataset, tmp_path / output), *overrides])

    return make


def tiny_overrides(dataset, output):
    return [
        f"data.path={dataset}",
        f"output={output}",
        "policy.preset=tiny",
        "data.response_key=response",
        "data.validation_fraction=0.25",
        "data.num_workers=0",
        "train.steps=6",
        "train.batch_size=4",
        "train.learning_rate=1e-3",
        "train.warmup_steps=2",
        "train.precision=no",
        "train.log_every=1",
        "train.validate_every=3",
        "train.save_every=2",
        "train.threads=1",
        "train.tensorboard=false",
    ]


def training_tensors(checkpoint):
    """The large tensors of a gathered checkpoint that only training needs."""
    return load_file(checkpoint / "training" / "whole.safetensors")


def numbers(folder):
    """The records of a run without the numbers that are allowed to differ between two runs."""
    records = read_metrics(folder / "metrics.jsonl")
    measured = ("samples_per_second", "data_wait_share", "memory_gb", "tflops", "mfu")
    return [{k: v for k, v in record.items() if k not in measured} for record in records]
