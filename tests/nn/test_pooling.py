"""Pooling against written-out sums, and whole image encoders against the goldens of Diffusion Policy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from vla.nn.pooling import GlobalAveragePool, SpatialSoftmax
from vla.nn.resnet import ResNet

STAGES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""The published encoders keep torchvision's modules in one sequence; pooling and classifier are left out."""


def test_global_average_pool():
    features = torch.randn(2, 5, 3, 4)
    want = [[features[b, c].numpy().mean() for c in range(5)] for b in range(2)]
    torch.testing.assert_close(GlobalAveragePool()(features), torch.tensor(np.array(want)))


def test_spatial_softmax_is_the_expected_position():
    torch.manual_seed(0)
    pool, features = SpatialSoftmax(4, num_keypoints=3, temperature=0.7), torch.randn(2, 4, 3, 5)
    maps = F.conv2d(features, pool.conv.weight, pool.conv.bias).detach().double().numpy()
    want = np.zeros((2, 6))
    for b in range(2):
        for k in range(3):
            e = np.exp(maps[b, k] / 0.7)
            for row in range(3):
                for column in range(5):
                    share = e[row, column] / e.sum()
                    want[b, 2 * k] += share * (-1 + 2 * column / 4)
                    want[b, 2 * k + 1] += share * (-1 + 2 * row / 2)
    assert pool.out_features == 6
    torch.testing.assert_close(pool(features), torch.tensor(want, dtype=torch.float32))


@pytest.mark.parametrize(("row", "column", "position"), [(0, 4, (1, -1)), (2, 0, (-1, 1)), (1, 2, (0, 0))])
def test_a_peak_is_found_in_every_channel(row, column, position):
    features = torch.zeros(1, 2, 3, 5)
    features[:, :, row, column] = 100
    pool = SpatialSoftmax(2, num_keypoints=None)
    torch.testing.assert_close(pool(features), torch.tensor([[*position, *position]], dtype=torch.float32))
    assert pool.out_features == 4


def test_softmax_is_taken_in_float32():
    pool, features = SpatialSoftmax(2, num_keypoints=None), torch.randn(1, 2, 24, 24)
    got = pool.bfloat16()(features.bfloat16())
    assert got.dtype == torch.bfloat16
    want = SpatialSoftmax(2, num_keypoints=None)(features.bfloat16().float())
    assert torch.equal(got, want.bfloat16())


def test_reset_fills_a_pool_that_was_built_without_memory():
    with torch.device("meta"):
        pool = SpatialSoftmax(64, temperature=0.5)
    pool.to_empty(device="cpu")
    for tensor in pool.state_dict().values():
        tensor.fill_(7)
    torch.manual_seed(0)
    pool.reset_parameters()
    assert pool.temperature.tolist() == [0.5]
    assert pool.conv.weight.abs().max() <= 1 / 8  # PyTorch draws within 1 / sqrt(fan-in)
    assert 0.05 < pool.conv.weight.std() < 0.09
    assert "temperature" in pool.state_dict()


def crop_centre(images, size):
    top, left = (round((side - size) / 2) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def images_of(small, side, crop):
    """The golden's images `[b o, 3, crop, crop]` in [-1, 1], with the crop of its evaluation."""
    blocks = np.ones((1, 1, side[0] // small.shape[2], side[1] // small.shape[3], 1), dtype=np.uint8)
    images = torch.from_numpy(np.kron(small, blocks)).flatten(0, 1).permute(0, 3, 1, 2)
    assert images.shape[-2:] == side
    return crop_centre(2 * (images.float() / 255) - 1, crop)


def encode(tensors, backbone, pool, linear, images, temperature):
    """Trunk, spatial softmax, linear layer and ReLU with weights under their published prefixes."""
    trunk = {}
    for name, tensor in tensors.items():
        if name.startswith(backbone):
            stage, _, rest = name.removeprefix(backbone).partition(".")
            trunk[f"{STAGES[stage]}.{rest}"] = tensor
    net, keypoints = ResNet(widths=(16, 16, 16, 16)), SpatialSoftmax(16, temperature=temperature)
    net.load_state_dict(trunk)
    keypoints.conv.load_state_dict({leaf: tensors[f"{pool}nets.{leaf}"] for leaf in ("weight", "bias")})
    with torch.no_grad():
        features = keypoints(net(images))
        return F.relu(F.linear(features, tensors[f"{linear}.weight"], tensors[f"{linear}.bias"]))


# The stored features carry the float32 rounding of their trunk: up to 1.5e-5 (the golden's own remarks).
BOUND = {"atol": 3e-5, "rtol": 0}


def test_encoder_equals_lerobots(shared_dir):
    folder = shared_dir / "goldens" / "lerobot_diffusion"
    tensors, io = load_file(folder / "model.safetensors"), np.load(folder / "io.npz")
    prefix = "diffusion.rgb_encoder."
    images = images_of(io["small_observation.image"], (96, 96), crop=84)
    got = encode(tensors, f"{prefix}backbone.", f"{prefix}pool.", f"{prefix}out", images, 1.0)
    want = torch.from_numpy(io["cond"]).view(3, 2, 66)[..., 2:].flatten(0, 1)  # per step: state 2, image 64
    torch.testing.assert_close(got, want, **BOUND)
    assert (got > 0).float().mean() > 0.1  # not a row of zeros behind the ReLU


@pytest.mark.parametrize(
    ("camera", "side", "start"),
    [("agentview_image", (84, 84), 0), ("robot0_eye_in_hand_image", (81, 87), 67)],
)
def test_encoder_equals_the_original(shared_dir, camera, side, start):
    folder = shared_dir / "goldens" / "diffusion_policy_cnn"
    tensors, io = load_file(folder / "ema_model.safetensors"), np.load(folder / "io.npz")
    prefix = f"obs_encoder.obs_nets.{camera}."
    temperature = tensors[f"{prefix}pool.temperature"].item()
    assert temperature == pytest.approx(0.7)
    images = images_of(io[f"small_{camera}"], side, crop=76)
    got = encode(tensors, f"{prefix}backbone.nets.", f"{prefix}pool.", f"{prefix}nets.3", images, temperature)
    want = torch.from_numpy(io["cond"]).view(3, 2, 133)[..., start : start + 64].flatten(0, 1)
    torch.testing.assert_close(got, want, **BOUND)
    assert (got > 0).float().mean() > 0.1
