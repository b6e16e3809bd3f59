"""What the reference implementations computed from tiny checkpoints, reproduced through the public call."""

import numpy as np
import pytest
import torch

import vla

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
TOLERANCE = {"atol": 1e-5, "rtol": 0}


def pixels(small: np.ndarray) -> torch.Tensor:
    """Enlarge pictures uint8 [b, v, 8, 8, 3] as the references saw them: [b, v, 3, 224, 224] in [-1, 1]."""
    large = np.kron(small, np.ones((28, 28, 1))).transpose(0, 1, 4, 2, 3)
    return torch.from_numpy(large.astype(np.float32) / 255 * 2 - 1)


def load(folder, small, mask):
    io = {name: torch.from_numpy(array) for name, array in np.load(folder / "io.npz").items()}
    observation = {
        "pixel_values": pixels(small(io).numpy()),
        "pixel_mask": mask(io),
        "input_ids": io["tokens"].long(),
        "attention_mask": io["token_mask"].long(),
        "state": io["state"],
    }
    return vla.AutoPolicy.from_pretrained(folder), observation, io


@pytest.fixture(scope="module")
def openpi(shared_dir):
    pytest.importorskip("tensorstore")

    def stacked(io, name):
        return torch.stack([io[f"{name}_{camera}"] for camera in CAMERAS], dim=1)

    folder = shared_dir / "goldens" / "openpi_jax_pi0"
    return load(folder, lambda io: stacked(io, "small"), lambda io: stacked(io, "mask"))


@pytest.fixture(scope="module")
def lerobot(shared_dir):
    folder = shared_dir / "goldens" / "lerobot_pi05"
    return load(folder, lambda io: io["small"].transpose(0, 1), lambda io: io["masks"].T)


@pytest.fixture(scope="module", params=["openpi", "lerobot"])
def golden(request):
    return request.getfixturevalue(request.param)


def velocity(golden) -> torch.Tensor:
    policy, observation, io = golden
    tau = 1 - io["t_openpi"].double()
    with torch.no_grad():
        return policy(**observation, actions=io["actions"], noise=io["noise"], tau=tau).velocity


def test_formats_are_recognised(openpi, lerobot):
    assert type(openpi[0]) is vla.Pi0Policy
    assert type(lerobot[0]) is vla.Pi05Policy
    assert (openpi[0].config.numerics, lerobot[0].config.numerics) == ("openpi", "float64")


def test_openpi_velocity(openpi):
    torch.testing.assert_close(velocity(openpi), -openpi[2]["v_openpi"], **TOLERANCE)


def test_lerobot_loss(lerobot):
    io = lerobot[2]
    squared = (io["noise"] - io["actions"] + velocity(lerobot)).square()
    torch.testing.assert_close(squared, io["loss"], **TOLERANCE)


@pytest.mark.parametrize("num_steps", [1, 10])
def test_samples(golden, num_steps):
    policy, observation, io = golden
    got = policy.sample_actions(**observation, noise=io["noise"], num_steps=num_steps)
    torch.testing.assert_close(got, io[f"sample_{num_steps}"], **TOLERANCE)


def test_openpi_hidden_states_of_the_text(openpi):
    policy, observation, io = openpi
    with torch.no_grad():
        prefix = policy.model.encode_prefix(
            *(observation[key] for key in ("pixel_values", "pixel_mask", "input_ids", "attention_mask")),
            with_hidden=True,
        )
    longest = prefix.text_hidden.shape[1]
    real = io["token_mask"][:, :longest]
    want = io["prefix_out"][:, 3 * 256 :][:, :longest]
    torch.testing.assert_close(prefix.text_hidden[real], want[real], atol=1e-5, rtol=1e-5)


def test_without_statistics_a_checkpoint_does_not_act(golden, shared_dir):
    with pytest.raises(vla.errors.StatisticsError, match="vla train"):
        vla.load(shared_dir / "goldens" / "lerobot_pi05")
