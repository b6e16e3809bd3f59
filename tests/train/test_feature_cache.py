"""Kept features give the losses that pictures give, are made once, and are never those of something else."""

import numpy as np
import pytest
import torch

from vla.data.frames import FrameStore
from vla.errors import ConfigError
from vla.train.feature_cache import cached_features
from vla.train.recipe_file import load_recipe
from vla.train.setup import set_up

STILL = ["data.augment=false", "policy.freeze=vision"]


def job(recipe):
    return set_up(recipe, None, rank=0, processes=1)


def losses(made, batches=3):
    policy, found = made.policy.eval(), []
    for number, (batch, where) in zip(range(batches), made.loader, strict=False):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            found.append((where, policy(**batch, generator=generator).loss.item()))
    return found


@pytest.mark.parametrize("policy", ["pi0", "pi05"])
def test_losses_are_those_of_the_pictures(tiny, tmp_path, policy, monkeypatch):
    common = [*STILL, f"policy.type={policy}", "policy.config.max_prompt_length=80"]
    seen = losses(job(tiny(*common)))
    kept = job(tiny(*common, f"data.feature_cache={tmp_path / 'features'}"))
    monkeypatch.setattr(FrameStore, "get", lambda *_: pytest.fail("a picture was decoded"))
    cached = losses(kept)
    assert [where for where, _ in cached] == [where for where, _ in seen]
    np.testing.assert_allclose([loss for _, loss in cached], [loss for _, loss in seen], atol=1e-5)
    batch, _ = next(iter(kept.validation))
    assert batch["pixel_values"].ndim == 4


def test_features_are_made_once_and_belong_to_weights_frames_and_pictures(tiny, tmp_path, monkeypatch):
    recipe = tiny(*STILL, f"data.feature_cache={tmp_path / 'features'}")
    made = job(recipe)
    assert len(list((tmp_path / "features").iterdir())) == 1
    job(recipe)
    assert len(list((tmp_path / "features").iterdir())) == 1
    parts = [made.robots[None].dataset, made.robots[None].held_out]

    def folders(cameras=made.robots[None].cameras, datasets=parts):
        cached_features(tmp_path / "features", made.policy, datasets, cameras, precision="no")
        return len(list((tmp_path / "features").iterdir()))

    assert folders() == 1
    assert folders(datasets=parts[:1]) == 2
    with torch.no_grad():
        next(made.policy.model.vision_tower.parameters()).add_(1e-3)
    assert folders() == 3


def test_bfloat16_features_survive_the_disk(tiny, tmp_path):
    made = job(tiny(*STILL))
    cache = cached_features(
        tmp_path / "features",
        made.policy,
        [made.robots[None].dataset],
        made.robots[None].cameras,
        precision="bf16",
    )
    item = made.robots[None].dataset[3]
    read = cache.read(int(item["index"]))
    assert read["pixel_values"].dtype == torch.bfloat16
    sample = made.policy.pipeline.forward({"images": {"top": item["observation.images.top"]}} | rest(item))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = made.policy.model.look(sample["pixel_values"])
    torch.testing.assert_close(read["pixel_values"], want.bfloat16())


def rest(item):
    return {"state": item["observation.state"], "actions": item["action"], "task": item["task"]}


def test_a_trained_tower_and_changing_pictures_are_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"frozen vision tower: policy\.freeze=vision"):
        job(tiny("data.augment=false", f"data.feature_cache={tmp_path / 'features'}"))


def test_augmentation_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.augment=false"):
        job(tiny("policy.freeze=vision", f"data.feature_cache={tmp_path / 'features'}"))
    assert not (tmp_path / "features").exists()


def test_the_recipe_knows_the_key(tmp_path):
    assert load_recipe(None, ["data.path=x", "output=y", "data.feature_cache=z"]).data.feature_cache == "z"
