import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import lerobot_make as lerobot
from tests.checkpoints.lerobot.test_read import read
from tests.folders import unchanged
from vla.errors import WeightsError
from vla.transforms.tokenizer import train_tokenizer

IMAGE = "observation.images.base_0_rgb"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["pick up the cup"])


@pytest.mark.parametrize("policy", ["pi0", "pi05"])
@pytest.mark.parametrize("mode", ["IDENTITY", "MEAN_STD", "MIN_MAX"])
@pytest.mark.parametrize("held", [False, True])
def test_images_that_lerobot_would_normalise(tmp_path, tokenizer, caplog, policy, mode, held):
    """With statistics of them it would, and is refused; without, it would not, and they stay as they are."""
    stats = lerobot.statistics()
    if not held:
        del stats[IMAGE]
    before, after = lerobot.processors(policy)
    step_of = next(one for one in before if one["registry_name"] == "normalizer_processor")
    step_of["config"]["norm_map"]["VISUAL"] = mode
    lerobot.write(tmp_path, before, after, stats)
    if mode != "IDENTITY" and held:
        said = f"preprocessor.json normalises {IMAGE} by {mode}, with the statistics in .*safetensors"
        with unchanged(tmp_path), pytest.raises(WeightsError, match=said):
            read(tmp_path, policy, tokenizer)
        return
    assert read(tmp_path, policy, tokenizer) is not None
    assert (f"asks for {mode} of {IMAGE}, but has no statistics of it" in caplog.text) == (mode != "IDENTITY")


@pytest.mark.parametrize("mode", ["IDENTITY", "MEAN_STD", "MEAN"])
@pytest.mark.parametrize("held", [False, True])
def test_images_that_early_lerobot_would_normalise(tmp_path, tokenizer, mode, held):
    """Early checkpoints have no processors, but config.json and statistics among the weights."""
    name = "normalize_inputs.buffer_observation_images_base_0_rgb.mean"
    save_file({name if held else "x": torch.ones(3, 1, 1)}, tmp_path / "model.safetensors")
    stored = {"normalization_mapping": {"VISUAL": mode, "STATE": "MEAN_STD"}}
    if mode == "IDENTITY" or (mode == "MEAN_STD" and not held):
        assert read(tmp_path, "pi0", tokenizer, **stored) is None
        return
    said = "normalises VISUAL by MEAN; known" if mode == "MEAN" else f"images by MEAN_STD, .* {name}"
    with unchanged(tmp_path), pytest.raises(WeightsError, match=said):
        read(tmp_path, "pi0", tokenizer, **stored)
