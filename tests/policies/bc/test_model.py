"""The network of `bc` against itself written out frame by frame, and what reaches its chunk."""

import pytest
import torch
import torch.nn.functional as F

from vla.errors import ShapeError
from vla.nn.resnet import ResNet
from vla.policies.bc.model import BCModel, init_bc_weights

CAMERAS, STEPS, STATE, HORIZON, ACTION = 3, 2, 5, 4, 7
WIDTHS = (16, 16, 16, 32)


def make(share_encoder=False):
    torch.manual_seed(0)
    return BCModel(
        *(CAMERAS, STEPS, STATE, HORIZON, ACTION),
        hidden_width=24,
        share_encoder=share_encoder,
        depths=(1, 1, 1, 1),
        widths=WIDTHS,
    )


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(1)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    images = torch.randn(2, CAMERAS, STEPS, 3, 64, 96, generator=g)
    return {"images": images, "image_mask": mask, "state": torch.randn(2, STEPS, STATE, generator=g)}


@pytest.mark.parametrize("share_encoder", [False, True])
def test_equals_the_network_written_out_frame_by_frame(share_encoder, inputs):
    model = make(share_encoder)
    chunks = []
    for sample in range(2):
        vector = []
        for camera in range(CAMERAS):
            encoder = model.encoders["shared" if share_encoder else str(camera)]
            for step in range(STEPS):
                if inputs["image_mask"][sample, camera]:
                    features = encoder(inputs["images"][sample, camera, step][None])[0]
                    vector.append(features.sum(dim=(1, 2)) / (2 * 3))
                else:
                    vector.append(torch.zeros(WIDTHS[3]))
        x = torch.cat([*vector, *inputs["state"][sample]])
        for layer in (0, 2):
            x = F.relu(model.head[layer].weight @ x + model.head[layer].bias)
        chunks.append((model.head[4].weight @ x + model.head[4].bias).view(HORIZON, ACTION))
    torch.testing.assert_close(model(**inputs), torch.stack(chunks))


@pytest.mark.parametrize("share_encoder", [False, True])
def test_images_of_absent_cameras_do_not_matter(share_encoder, inputs):
    model = make(share_encoder)
    before = model(**inputs)
    inputs["images"][1, 1] = float("nan")
    torch.testing.assert_close(model(**inputs), before)


def test_every_frame_and_state_matters(inputs):
    model = make()
    before = model(**inputs)[0]
    for camera in range(CAMERAS):
        for step in range(STEPS):
            images = inputs["images"].clone()
            images[0, camera, step] = 0
            assert (model(**{**inputs, "images": images})[0] - before).abs().max() > 1e-4
    for step in range(STEPS):
        state = inputs["state"].clone()
        state[0, step] = 0
        assert (model(**{**inputs, "state": state})[0] - before).abs().max() > 1e-4


@pytest.mark.parametrize(("share_encoder", "encoders"), [(False, ["0", "1", "2"]), (True, ["shared"])])
def test_every_parameter_has_a_gradient(share_encoder, encoders, inputs):
    model = make(share_encoder)
    assert list(model.encoders) == encoders
    model(**inputs).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    one = sum(p.numel() for p in ResNet((1, 1, 1, 1), WIDTHS).parameters())
    assert sum(p.numel() for p in model.encoders.parameters()) == len(encoders) * one


def test_initialisation_reaches_every_tensor():
    model = make()
    for tensor in model.state_dict().values():
        tensor.fill_(float("nan"))
    for module in model.modules():
        init_bc_weights(module)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    # PyTorch's linear layers: uniform within 1 / sqrt(inputs).
    bound = model.head[2].in_features ** -0.5
    assert 0.9 * bound < model.head[2].weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("images", (2, CAMERAS, 1, 3, 64, 96)),
        ("images", (2, CAMERAS, STEPS, 64, 96, 3)),
        ("image_mask", (2, CAMERAS + 1)),
        ("state", (2, STATE)),
        ("state", (2, STEPS, STATE + 1)),
    ],
)
def test_other_shapes_are_refused(name, shape, inputs):
    with pytest.raises(ShapeError, match=f"{name} must have shape"):
        make()(**{**inputs, name: torch.zeros(shape)})
