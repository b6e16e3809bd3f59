"""What the reference implementations computed from tiny checkpoints, reproduced through the public call."""

import numpy as np
import pytest

import vla
from tests.parity.golden import compute

NUMERICS = {"openpi_jax_pi0": (vla.Pi0Policy, "openpi"), "lerobot_pi05": (vla.Pi05Policy, "float64")}


@pytest.mark.parametrize("name", NUMERICS)
def test_formats_are_recognised(name, shared_dir):
    if name.startswith("openpi_jax"):
        pytest.importorskip("tensorstore")
    policy = vla.AutoPolicy.from_pretrained(shared_dir / "goldens" / name)
    assert (type(policy), policy.config.numerics) == NUMERICS[name]


def test_lerobot_loss_lies_closer_than_its_bound(shared_dir):
    """Here the velocity is that close, whatever its square allows."""
    computed, arrays = compute("lerobot_pi05", shared_dir / "goldens" / "lerobot_pi05")
    assert np.abs(computed.quantities["loss"].got - arrays["loss"]).max() <= 1e-5


@pytest.mark.parametrize("name", NUMERICS)
def test_without_statistics_a_checkpoint_does_not_act(name, shared_dir):
    with pytest.raises(vla.errors.StatisticsError, match="vla train"):
        vla.load(shared_dir / "goldens" / name)
