"""Every registered policy, and a foreign one, through one suite.

A test is skipped only where the policy's class declares that it leaves the thing out; pytest's summary lists
those skips (`-rs`).
"""

import pytest
import torch

from tests.contract import toy
from tests.data.make import make_dataset
from vla.policies.base import CAPABILITIES
from vla.policies.registry import make_config, policy_entry, policy_names

assert toy.CONFIG.model_type == "vla_toy"  # importing it has registered it
CAMERA = "observation.images.top"


@pytest.fixture(params=policy_names(), scope="module")
def name(request):
    return request.param


@pytest.fixture
def policy(name):
    """A tiny policy with weights that are not trivial, in evaluation mode."""
    torch.manual_seed(0)
    made = policy_entry(name).policy(make_config(name, preset="tiny"))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture
def needs(name):
    """Skip a test of what the policy's class declares that it leaves out."""

    def check(capability):
        assert capability in CAPABILITIES
        if capability in policy_entry(name).policy.leaves_out:
            pytest.skip(f"{name} leaves out: {capability}")

    return check


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Four episodes of 12 frames, one camera."""
    return make_dataset(
        tmp_path_factory.mktemp("contract") / "set", length=12, cameras=[CAMERA], response=True
    )


@pytest.fixture
def recipe(name, dataset, tmp_path):
    """Make the recipe of a run of a few seconds; keyword `output` is its folder's name."""
    from vla.train import load_recipe

    def make(*overrides, output="run"):
        return load_recipe(
            None,
            [
                f"data.path={dataset}",
                f"output={tmp_path / output}",
                f"policy.type={name}",
                "policy.preset=tiny",
                "data.validation_fraction=0.25",
                "data.num_workers=0",
                "train.steps=4",
                "train.batch_size=4",
                "train.warmup_steps=1",
                "train.precision=no",
                "train.log_every=1",
                "train.validate_every=2",
                "train.save_every=2",
                "train.threads=1",
                "train.tensorboard=false",
                *overrides,
            ],
        )

    return make
