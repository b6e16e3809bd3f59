import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vla.errors import ConfigError, ShapeError
from vla.transforms.base import Pipeline
from vla.transforms.images import (
    AugmentImages,
    ResizeImages,
    crop_and_rotate,
    jitter_colour,
    resize_with_pad,
)

SLOTS = ("base", "left_wrist", "right_wrist")


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def photograph(height: int, width: int) -> torch.Tensor:
    """Something with edges, gradients and texture, uint8 [3, h, w]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    planes = [128 + 120 * torch.sin(17 * x * y), 255 * ((x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.09), 255 * x * y]
    return (torch.stack([plane.float() for plane in planes]) + noise(height, width) / 16).clamp(0, 255).byte()


def pillow_resize_with_pad(image: torch.Tensor, size: int) -> torch.Tensor:
    """The published rule with Pillow, step by step."""
    height, width = image.shape[-2:]
    ratio = max(width / size, height / size)
    new_width, new_height = max(1, math.floor(width / ratio)), max(1, math.floor(height / ratio))
    image = Image.fromarray(image.permute(1, 2, 0).numpy())
    canvas = Image.new("RGB", (size, size), 0)
    resized = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
    canvas.paste(resized, ((size - new_width) // 2, (size - new_height) // 2))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)


SIZES = [(480, 640), (256, 256), (360, 640), (720, 405), (50, 70), (116, 100), (37, 224), (1, 9)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [224, 28])
def test_resizing_agrees_with_pillow(height: int, width: int, size: int):
    image = photograph(height, width)
    ours, theirs = resize_with_pad(image, size).int(), pillow_resize_with_pad(image, size).int()
    difference = (ours - theirs).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(2, 60), st.integers(0, 99))
def test_resizing_noise_agrees_with_pillow(height: int, width: int, size: int, seed: int):
    image = noise(height, width, seed)
    # Pillow also resamples an image that is already right, to itself.
    difference = resize_with_pad(image, size).int() - pillow_resize_with_pad(image, size).int()
    assert difference.abs().max() <= 2


@pytest.mark.parametrize(
    ("height", "width", "bars"),
    [
        (10, 20, (5, 5, 0, 0)),  # top, bottom, left, right
        (20, 10, (0, 0, 5, 5)),
        (9, 20, (5, 6, 0, 0)),  # an odd rest goes to the bottom
        (20, 9, (0, 0, 5, 6)),
        (400, 200, (0, 0, 5, 5)),
        (1, 1000, (9, 10, 0, 0)),
    ],
)
def test_bars_lie_where_the_rule_says(height: int, width: int, bars: tuple[int, int, int, int]):
    square = resize_with_pad(torch.full((3, height, width), 200, dtype=torch.uint8), 20)
    top, bottom, left, right = bars
    expected = torch.zeros(3, 20, 20, dtype=torch.uint8)
    expected[:, top : 20 - bottom, left : 20 - right] = 200
    assert torch.equal(square, expected)


def test_a_picture_of_the_right_size_is_untouched():
    image = noise(32, 32)
    assert resize_with_pad(image, 32) is image


def test_memory_order_makes_no_difference():
    image = photograph(60, 80)
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(resize_with_pad(image, 32), resize_with_pad(channels_last, 32))


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (torch.zeros(3, 4, 4), r"float32 \[3, 4, 4\]"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"uint8 \[4, 4, 3\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), r"uint8 \[1, 3, 4, 4\]"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), r"uint8 \[3, 0, 4\]"),
    ],
)
def test_anything_but_a_picture_is_refused_by_name(image: torch.Tensor, got: str):
    with pytest.raises(ShapeError, match=rf"must be uint8 \[3, h, w\], got {got}"):
        resize_with_pad(image, 8)
    with pytest.raises(ShapeError, match=rf"Camera 'base' must be uint8 \[3, h, w\], got {got}"):
        ResizeImages(SLOTS, 8).forward({"images": {"base": image}})
    with pytest.raises(ShapeError, match=rf"Camera 'base' must be uint8 \[3, h, w\], got {got}"):
        AugmentImages().forward({"images": {"base": image}}, torch.Generator())


def test_resize_images_scales_and_masks():
    base, right = noise(16, 16, 1), noise(16, 16, 2)
    sample = {"images": {"right_wrist": right, "base": base}, "task": "go"}
    resize = ResizeImages(SLOTS, 16)
    out = resize.forward(sample)
    assert set(out) == {"task", "pixel_values", "pixel_mask"}
    assert out["pixel_values"].shape == (3, 3, 16, 16)
    assert out["pixel_values"].dtype == torch.float32
    assert out["pixel_mask"].tolist() == [True, False, True]
    assert torch.equal(out["pixel_values"][0], base.float() / 255 * 2 - 1)
    assert torch.equal(out["pixel_values"][2], right.float() / 255 * 2 - 1)
    assert (out["pixel_values"][1] == -1).all()
    assert resize.inverse({"actions": 1}) == {"actions": 1}
    assert set(sample["images"]) == {"right_wrist", "base"}, "the input was edited"


def test_black_and_white_are_the_ends_of_the_range():
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    image[:, 0] = 255
    pixels = ResizeImages(("base",), 4).forward({"images": {"base": image}})["pixel_values"][0]
    assert (pixels[:, 0] == 1).all()
    assert (pixels[:, 1:] == -1).all()


def test_cameras_that_do_not_fit_are_named():
    resize = ResizeImages(SLOTS, 8)
    with pytest.raises(ShapeError, match=r"no camera 'left_wrst'.*Did you mean 'left_wrist'"):
        resize.forward({"images": {"left_wrst": noise(8, 8)}})
    for sample in ({"images": {}}, {"state": torch.zeros(2)}):
        with pytest.raises(ShapeError, match=r"no image.*base, left_wrist, right_wrist"):
            resize.forward(sample)


@pytest.mark.parametrize(("slots", "size"), [((), 8), (("a", "a"), 8), (("a",), 1)])
def test_impossible_cameras_are_refused(slots: tuple[str, ...], size: int):
    with pytest.raises(ConfigError, match=r"slots|size"):
        ResizeImages(slots, size)


def naive_crop_and_rotate(
    image: np.ndarray, crop: float, position: tuple[float, float], angle: float
) -> np.ndarray:
    """One output pixel at a time, [3, h, w]: back to the crop, then to the image, then bilinear."""
    _, height, width = image.shape
    out = np.zeros_like(image)

    def at(row: int, column: int) -> np.ndarray:
        inside = 0 <= row < height and 0 <= column < width
        return image[:, row, column] if inside else np.zeros(3)

    for i in range(height):
        for j in range(width):
            x, y = j + 0.5 - width / 2, i + 0.5 - height / 2
            x, y = math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y
            # The crop's corner moves over the margin that cropping leaves.
            left = (1 - crop) * width * (position[0] + 1) / 2
            top = (1 - crop) * height * (position[1] + 1) / 2
            column = left + crop * (x + width / 2) - 0.5
            row = top + crop * (y + height / 2) - 0.5
            i0, j0 = math.floor(row), math.floor(column)
            for row_near, row_share in ((i0, i0 + 1 - row), (i0 + 1, row - i0)):
                for column_near, column_share in ((j0, j0 + 1 - column), (j0 + 1, column - j0)):
                    out[:, i, j] += row_share * column_share * at(row_near, column_near)
    return out


@pytest.mark.parametrize(("height", "width"), [(9, 13), (12, 8), (5, 5)])
@pytest.mark.parametrize(
    ("crop", "position", "degrees"),
    [
        (1.0, (0, 0), 0),
        (0.5, (-1, 1), 0),
        (0.95, (0.3, -0.7), 5),
        (0.8, (1, 1), -30),
        (1.0, (0, 0), 100),
    ],
)
def test_crop_and_rotation_are_the_loop_over_pixels(
    height: int, width: int, crop: float, position: tuple[float, float], degrees: float
):
    image = noise(height, width).float()
    ours = crop_and_rotate(image, crop, position, math.radians(degrees))
    naive = naive_crop_and_rotate(image.double().numpy(), crop, position, math.radians(degrees))
    np.testing.assert_allclose(ours.numpy(), naive, atol=2e-2)


def test_a_quarter_turn_is_anticlockwise_and_exact():
    image = noise(8, 8).float()
    turned = crop_and_rotate(image, 1.0, (0, 0), math.pi / 2)
    torch.testing.assert_close(turned, torch.rot90(image, 1, (1, 2)), atol=1e-2, rtol=0)


def test_rotation_agrees_with_pillow_away_from_the_corners():
    image = photograph(64, 64)
    ours = crop_and_rotate(image.float(), 1.0, (0, 0), math.radians(5))
    image = Image.fromarray(image.permute(1, 2, 0).numpy()).rotate(5, Image.Resampling.BILINEAR)
    theirs = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    torch.testing.assert_close(ours[:, 8:-8, 8:-8], theirs[:, 8:-8, 8:-8].float(), atol=1.01, rtol=0)


@pytest.mark.parametrize(("side", "column"), [(-1, 2.0), (1, 6.0)])
def test_the_crop_lies_where_it_is_put(side: int, column: float):
    # On an image whose value is its column, half of the width starting at column 0 or 4.
    ramp = torch.arange(8.0).expand(3, 8, 8).contiguous()
    out = crop_and_rotate(ramp, 0.5, (side, 0), 0.0)
    assert out[:, :, 3:5].mean().item() == pytest.approx(column - 0.5)


def stepwise_jitter(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    image = image * brightness
    image = (image - image.mean()) * contrast + image.mean()
    grey = image.mean(0, keepdims=True)
    return (image - grey) * saturation + grey


@settings(deadline=None)
@given(*[st.floats(0, 2)] * 3, st.integers(0, 99))
def test_colour_is_the_three_steps_in_a_row(brightness: float, contrast: float, saturation: float, seed: int):
    image = noise(6, 5, seed).float()
    ours = jitter_colour(image, brightness, contrast, saturation)
    steps = stepwise_jitter(image.double().numpy(), brightness, contrast, saturation)
    np.testing.assert_allclose(ours.numpy(), steps, atol=2e-3)


STILL = {"crop": 1.0, "rotation_degrees": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}


def images() -> dict[str, torch.Tensor]:
    return {"base": photograph(40, 48), "left_wrist": photograph(32, 32)}


def test_without_a_generator_nothing_happens():
    sample = {"images": images()}
    assert AugmentImages().forward(sample) is sample
    bare = {"state": 1}
    assert AugmentImages().forward(bare, torch.Generator()) is bare


def test_no_strength_changes_nothing():
    before = images()
    generator = torch.Generator().manual_seed(0)
    for still in (AugmentImages(**STILL), AugmentImages(**STILL | {"rotation_degrees": 1e-9})):
        after = still.forward({"images": before}, generator)["images"]
        assert all(torch.equal(after[slot], before[slot]) for slot in before)


def test_augmentation_is_a_function_of_the_generator_alone():
    augment = AugmentImages(wrist_slots=("left_wrist",))
    before = images()
    kept = {slot: image.clone() for slot, image in before.items()}
    once = augment.forward({"images": before}, torch.Generator().manual_seed(3))["images"]
    shuffled = dict(reversed(before.items()))
    again = augment.forward({"images": shuffled}, torch.Generator().manual_seed(3))["images"]
    other = augment.forward({"images": before}, torch.Generator().manual_seed(4))["images"]
    for slot in before:
        assert once[slot].dtype == torch.uint8
        assert once[slot].shape == before[slot].shape
        assert torch.equal(once[slot], again[slot])
        assert not torch.equal(once[slot], other[slot])
        assert torch.equal(before[slot], kept[slot]), "the input was edited"


def test_each_camera_has_its_own_draws():
    image = photograph(32, 32)
    out = AugmentImages().forward({"images": {"a": image, "b": image}}, torch.Generator().manual_seed(0))
    assert not torch.equal(out["images"]["a"], out["images"]["b"])


def test_wrist_cameras_keep_their_geometry():
    geometry = STILL | {"crop": 0.9, "rotation_degrees": 5.0}
    before = images()
    augment = AugmentImages(wrist_slots=("left_wrist",), **geometry)
    after = augment.forward({"images": before}, torch.Generator().manual_seed(0))["images"]
    assert torch.equal(after["left_wrist"], before["left_wrist"])
    assert not torch.equal(after["base"], before["base"])
    # Declaring one camera a wrist camera leaves the others' draws alone.
    free = AugmentImages(**geometry).forward({"images": before}, torch.Generator().manual_seed(0))["images"]
    assert torch.equal(free["base"], after["base"])


@pytest.mark.parametrize("strength", ["brightness", "contrast", "saturation"])
def test_strengths_are_uniform_within_their_bounds(strength: str):
    # A reddish image with two tones: each factor can be read off it.
    image = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    image[0] = 130
    image[:, :2] -= 60
    augment = AugmentImages(**STILL | {strength: 0.4})
    generator = torch.Generator().manual_seed(0)
    measured = []
    for _ in range(300):
        out = augment.forward({"images": {"base": image}}, generator)["images"]["base"].float()
        factor = {
            "brightness": out[1, 3, 3] / 100,
            "contrast": (out[1, 3, 3] - out[1, 0, 0]) / 60,
            "saturation": (out[0, 3, 3] - out[1, 3, 3]) / 30,
        }
        measured.append(factor[strength].item())
    assert min(measured) == pytest.approx(0.6, abs=0.05)
    assert max(measured) == pytest.approx(1.4, abs=0.05)
    assert np.mean(measured) == pytest.approx(1.0, abs=0.05)
    assert np.std(measured) == pytest.approx(0.8 / math.sqrt(12), abs=0.03)


def test_a_pure_crop_never_shows_black():
    white = torch.full((3, 20, 30), 255, dtype=torch.uint8)
    augment = AugmentImages(**STILL | {"crop": 0.7})
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert (augment.forward({"images": {"base": white}}, generator)["images"]["base"] == 255).all()


def test_colours_are_clipped_to_the_range_of_a_picture():
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    image[:, :2] = 255
    strong = AugmentImages(**STILL | {"contrast": 1.0, "brightness": 1.0})
    generator = torch.Generator().manual_seed(0)
    seen = [strong.forward({"images": {"base": image}}, generator)["images"]["base"] for _ in range(40)]
    # A wrapped-around number would make the bright half darker than the dark one.
    assert all((out[:, :2] >= out[:, 2:]).all() for out in seen)
    assert any((out[:, :2] == 255).all() and (out[:, 2:] == 0).all() for out in seen)


def test_pictures_can_be_made_small_before_they_are_varied():
    big = {"images": {"base": photograph(60, 80)}}
    small = {"images": {"base": resize_with_pad(big["images"]["base"], 32)}}
    first = AugmentImages(size=32).forward(big, torch.Generator().manual_seed(0))
    second = AugmentImages().forward(small, torch.Generator().manual_seed(0))
    assert torch.equal(first["images"]["base"], second["images"]["base"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"crop": 0.0}, "crop"),
        ({"crop": 1.5}, "crop"),
        ({"rotation_degrees": -1.0}, "rotation_degrees"),
        ({"brightness": 1.5}, "brightness"),
        ({"contrast": -0.1}, "contrast"),
        ({"saturation": 2.0}, "saturation"),
        ({"size": 1}, "size"),
    ],
)
def test_impossible_strengths_are_refused(setting: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        AugmentImages(**setting)


def test_both_survive_their_file(tmp_path):
    pipeline = Pipeline([AugmentImages(("left_wrist",), crop=0.8, size=64), ResizeImages(SLOTS, 32)])
    pipeline.save(tmp_path)
    assert Pipeline.load(tmp_path).transforms == pipeline.transforms


def test_frames_of_a_past_are_resized_one_by_one():
    frames = torch.stack([photograph(48, 64), noise(48, 64, 1)])
    assert torch.equal(resize_with_pad(frames, 20), torch.stack([resize_with_pad(one, 20) for one in frames]))
    out = ResizeImages(SLOTS, 20).forward({"images": {"base": frames, "right_wrist": frames.flip(0)}})
    assert out["pixel_values"].shape == (3, 2, 3, 20, 20)
    for step in range(2):
        alone = ResizeImages(SLOTS, 20).forward(
            {"images": {"base": frames[step], "right_wrist": frames[1 - step]}}
        )
        assert torch.equal(out["pixel_values"][:, step], alone["pixel_values"])
    assert out["pixel_mask"].tolist() == [True, False, True]
    with pytest.raises(ShapeError, match="as many frames as one another"):
        ResizeImages(SLOTS, 20).forward({"images": {"base": frames, "left_wrist": frames[0]}})


def test_frames_of_a_past_are_varied_alike():
    frame = photograph(40, 40)
    both = {"images": {"base": torch.stack([frame, frame]), "left_wrist": frame}}
    one = {"images": {"base": frame, "left_wrist": frame}}
    augment = AugmentImages(("left_wrist",))
    ours, theirs = (augment.forward(sample, torch.Generator().manual_seed(3)) for sample in (both, one))
    for image in ours["images"]["base"]:
        assert torch.equal(image, theirs["images"]["base"])
    assert torch.equal(ours["images"]["left_wrist"], theirs["images"]["left_wrist"])
    assert not torch.equal(theirs["images"]["base"], frame)


def test_a_rectangle_is_filled_as_a_square_is():
    image = photograph(30, 60)
    boxed = resize_with_pad(image, (40, 40))
    assert torch.equal(boxed, resize_with_pad(image, 40))
    assert torch.equal(resize_with_pad(image, (20, 40)), boxed[:, 10:30])
