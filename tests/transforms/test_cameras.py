import numpy as np
import pytest
import torch

from vla.errors import ConfigError, ShapeError
from vla.transforms import Pipeline, RenameCameras, ResizeImages, RotateImages
from vla.transforms.cameras import camera_names


def test_masks_of_a_past_are_renamed_with_their_images():
    pad = torch.tensor([True, False])
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    sample = {"images": {"front": images}, "image_is_pad": {"front": pad}}
    out = RenameCameras({"front": "base"}).forward(sample)
    assert out["image_is_pad"] == {"base": pad}
    assert RenameCameras({"front": "base"}).inverse(out)["image_is_pad"] == {"front": pad}


@pytest.mark.parametrize(("degrees", "quarters"), [(90, 3), (180, 2), (270, 1)])
def test_pictures_turn_clockwise_and_back(degrees, quarters):
    """numpy turns anticlockwise: three quarters that way are one the other way."""
    image = torch.arange(3 * 2 * 5, dtype=torch.uint8).view(3, 2, 5)
    rotate = RotateImages({"top": degrees})
    there = rotate.forward({"images": {"top": image, "other": image}, "task": "x"})
    assert np.array_equal(there["images"]["top"].numpy(), np.rot90(image.numpy(), quarters, axes=(1, 2)))
    assert torch.equal(there["images"]["other"], image)
    assert torch.equal(rotate.inverse(there)["images"]["top"], image)


def test_upside_down_flips_both_axes():
    image = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
    out = RotateImages({"top": 180}).forward({"images": {"top": image}})
    assert torch.equal(out["images"]["top"], image.flip(-1, -2))


def test_leading_dimensions_turn_alike():
    images = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    rotate = RotateImages({"top": 90})
    out = rotate.forward({"images": {"top": images}})["images"]["top"]
    alone = rotate.forward({"images": {"top": images[3]}})["images"]["top"]
    assert torch.equal(out[3], alone)


def test_cameras_get_their_slots_and_slots_stay():
    image, other = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    rename = RenameCameras({"cam_high": "base", "cam_wrist": "wrist"})
    there = rename.forward({"images": {"cam_high": image, "wrist": other, "unknown": other}})["images"]
    assert there == {"base": image, "wrist": other, "unknown": other}
    assert rename.inverse({"images": {"base": image}})["images"] == {"cam_high": image}


@pytest.mark.parametrize("transform", [RotateImages({"a": 90}), RenameCameras({"a": "b"})])
def test_samples_without_pictures_pass(transform):
    sample = {"state": torch.ones(2)}
    assert transform.forward(sample) is sample
    assert transform.inverse(sample) is sample


def test_saved_and_rebuilt(tmp_path):
    pipeline = Pipeline([RotateImages({"a": 90}), RenameCameras({"a": "b"})])
    pipeline.save(tmp_path)
    assert Pipeline.load(tmp_path).transforms == pipeline.transforms


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match=r"'top'.*clockwise, got 45"):
        RotateImages({"top": 45})
    with pytest.raises(ConfigError, match="slot of its own"):
        RenameCameras({"a": "base", "b": "base"})
    image = torch.zeros(3, 2, 2)
    with pytest.raises(ShapeError, match="'a' is the camera for the slot 'base'"):
        RenameCameras({"a": "base"}).forward({"images": {"a": image, "base": image}})


def test_a_picture_may_come_under_the_slot_s_name_or_the_robot_s():
    resize = ResizeImages(("base", "wrist"), 4)
    assert camera_names(Pipeline([resize])) == ("base", "wrist")
    rename = RenameCameras({"front": "base", "wrist": "wrist"})
    assert camera_names(Pipeline([rename, resize])) == ("base", "wrist", "front")
    assert camera_names(Pipeline([])) == ()
