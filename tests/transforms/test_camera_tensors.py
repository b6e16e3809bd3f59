import pytest
import torch

from vla.errors import ConfigError, ShapeError
from vla.transforms import CameraFormat, CameraTensors, Pipeline, RenameCameras, resize_with_pad
from vla.transforms.cameras import camera_names
from vla.transforms.images.tensors import IMAGENET_MEAN, IMAGENET_STD


def image(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


BOTH = CameraTensors(
    {
        "head": CameraFormat(16, 24, steps=2, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        "hand": CameraFormat(8, 8, low=0.0, high=1.0),
    }
)


def test_each_camera_has_its_own_size_past_and_range():
    head, hand = image(2, 3, 32, 48), image(3, 8, 8, seed=1)
    pads = {"head": torch.tensor([True, False])}
    sample = {"images": {"head": head, "hand": hand}, "image_is_pad": pads, "task": "go"}
    out = BOTH.forward(sample)
    assert set(out) == {"image_head", "image_head_is_pad", "image_hand", "camera_mask", "task"}
    torch.testing.assert_close(out["image_hand"], hand / 255)
    small = torch.stack([resize_with_pad(frame, (16, 24)) for frame in head]) / 255
    for channel in range(3):
        expected = (small[:, channel] - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        torch.testing.assert_close(out["image_head"][:, channel], expected)
    assert out["image_head_is_pad"].tolist() == [True, False]
    assert out["camera_mask"].tolist() == [True, True]
    assert out["image_head"].dtype == torch.float32


def test_an_absent_camera_is_black_and_of_the_same_shape():
    out = BOTH.forward({"images": {"hand": image(3, 20, 30)}})
    assert out["image_head"].shape == (2, 3, 16, 24)
    expected = -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(out["image_head"][1, :, 3, 5], expected)
    assert out["camera_mask"].tolist() == [False, True]
    assert out["image_head_is_pad"].tolist() == [False, False]


def test_letterbox_keeps_the_aspect_ratio_and_stretch_does_not():
    white = torch.full((3, 10, 40), 255, dtype=torch.uint8)
    boxed, stretched = (
        CameraTensors({"a": CameraFormat(20, 20, fit=fit)}).forward({"images": {"a": white}})["image_a"]
        for fit in ("letterbox", "stretch")
    )
    assert (stretched == 1).all()
    assert (boxed == 1).float().mean() == 5 / 20
    assert (boxed[:, 0] == -1).all()


def test_a_crop_is_the_centre_or_one_place_for_all_frames():
    frame = image(3, 12, 12)
    crop = CameraTensors({"a": CameraFormat(12, 12, steps=2, crop=(8, 6), low=0, high=255)})
    sample = {"images": {"a": torch.stack([frame, frame])}}
    centre = crop.forward(sample)["image_a"]
    torch.testing.assert_close(centre[0], frame[:, 2:10, 3:9].float())
    corners = set()
    for seed in range(40):
        first, second = crop.forward(sample, torch.Generator().manual_seed(seed))["image_a"].round()
        assert torch.equal(first, second)
        (corner,) = [
            (top, left)
            for top in range(5)
            for left in range(7)
            if torch.equal(frame[:, top : top + 8, left : left + 6].float(), first)
        ]
        corners.add(corner)
    assert len(corners) > 15
    assert {top for top, _ in corners} == set(range(5))


def test_it_survives_its_file_and_names_its_cameras(tmp_path):
    pipeline = Pipeline([RenameCameras({"front": "head"}), BOTH])
    pipeline.save(tmp_path)
    assert Pipeline.load(tmp_path).transforms == pipeline.transforms
    assert camera_names(pipeline) == ("head", "hand", "front")


def test_what_does_not_fit():
    with pytest.raises(ShapeError, match=r"reads 2 frames of camera 'head', got \[3, 3, 8, 8\]"):
        BOTH.forward({"images": {"head": image(3, 3, 8, 8)}})
    with pytest.raises(ShapeError, match="no camera 'foot'"):
        BOTH.forward({"images": {"foot": image(3, 8, 8)}})
    with pytest.raises(ConfigError, match="at least one camera"):
        CameraTensors({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 1}, "at least 2 pixels"),
        ({"steps": 0}, "steps=0"),
        ({"fit": "squeeze"}, "letterbox, stretch"),
        ({"crop": (9, 4)}, "does not lie in 8 x 8"),
        ({"mean": IMAGENET_MEAN}, "belong together"),
        ({"low": 1.0}, "low must be less"),
    ],
)
def test_formats_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        CameraFormat(**{"height": 8, "width": 8, **options})
