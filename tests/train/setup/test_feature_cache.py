"""Kept features give the losses that images give, are made once, and are never those of something else."""

import itertools
import logging
import shutil
import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

from tests.contract import toy
from tests.folders import unchanged
from vla.atomic import SaveError
from vla.data.frames import FrameStore
from vla.errors import ConfigError, DatasetError
from vla.train.loop import train
from vla.train.recipe_file import load_recipe
from vla.train.setup import feature_cache
from vla.train.setup.feature_cache import cached_features
from vla.train.setup.run import set_up
from vla.transforms.tokenizer import train_tokenizer

STILL = ["data.augment=false", "policy.freeze=vision"]
ALONE = [
    "data.augment=false",
    "policy.freeze=vlm",
    "data.response_key=null",
    "policy.config.max_prompt_length=80",
]
PREFIX = [*ALONE, "data.feature_cache_of=prefix"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("file", "is a file, or a link to nothing"),
        ("run", "lies in the run's folder"),
        ("run/x", "lies in the"),
    ],
)
def test_a_place_where_nothing_can_be_kept(tiny, tmp_path, place, said):
    (tmp_path / "file").touch()
    recipe = tiny(*STILL, f"data.feature_cache={tmp_path / place}", f"output={tmp_path / 'run'}")
    with unchanged(tmp_path), pytest.raises(ConfigError, match=said):
        job(recipe)


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
    monkeypatch.setattr(FrameStore, "get", lambda *_: pytest.fail("an image was decoded"))
    cached = losses(kept)
    assert [where for where, _ in cached] == [where for where, _ in seen]
    np.testing.assert_allclose([loss for _, loss in cached], [loss for _, loss in seen], atol=1e-5)
    batch, _ = next(iter(kept.validation))
    assert batch["image_features"].ndim == 4
    assert "pixel_values" not in batch


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
    assert read["image_features"].dtype == torch.bfloat16
    sample = made.policy.pipeline.forward({"images": {"top": item["observation.images.top"]}} | rest(item))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = made.policy.model.encode_images(sample["pixel_values"])
    torch.testing.assert_close(read["image_features"], want.bfloat16())


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


def test_what_the_policy_does_not_name_is_refused_with_its_choices(tiny, tmp_path):
    options = [*STILL, f"data.feature_cache={tmp_path / 'features'}", "data.feature_cache_of=visoin"]
    with pytest.raises(ConfigError, match=r"must be one of vision, prefix for Pi0Policy.*mean 'vision'"):
        job(tiny(*options))


def test_a_policy_that_names_nothing_keeps_nothing(tmp_path):
    policy = toy.POLICY(toy.CONFIG.tiny())
    with pytest.raises(ConfigError, match="ToyPolicy has no features to keep"):
        cached_features(tmp_path, policy, [], {}, precision="no")


# -- the whole prefix ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["pi0", "pi05"])
def test_losses_of_a_kept_prefix_are_those_of_pictures_and_text(tiny, tmp_path, policy, monkeypatch):
    seen = losses(job(tiny(*ALONE, f"policy.type={policy}")), 6)
    kept = job(tiny(*PREFIX, f"policy.type={policy}", f"data.feature_cache={tmp_path / 'features'}"))
    monkeypatch.setattr(FrameStore, "get", lambda *_: pytest.fail("an image was decoded"))
    monkeypatch.setattr(type(kept.policy.model), "encode_prefix", lambda *_: pytest.fail("the prefix ran"))
    cached = losses(kept, 6)
    assert [where for where, _ in cached] == [where for where, _ in seen]
    np.testing.assert_allclose([loss for _, loss in cached], [loss for _, loss in seen], atol=1e-5)
    batch, _ = next(iter(kept.validation))
    assert set(batch) >= {"prefix_keys_values", "prefix_mask", "state"}
    assert not set(batch) & {"pixel_values", "input_ids", "labels"}
    masks = [batch["prefix_mask"] for batch, _ in itertools.islice(kept.loader, 6)]
    assert len({int(row.sum()) for mask in masks for row in mask}) > 1, "texts of one length need no mask"


def test_a_run_on_a_kept_prefix_learns_the_same(tiny, tmp_path):
    cached = [*PREFIX, f"data.feature_cache={tmp_path / 'features'}"]
    run = ["train.save_every=100", "data.bucket_by_length=true"]
    want, got = (
        train(tiny(*options, *run, output=f"run{number}"), progress=False).metrics
        for number, options in enumerate((ALONE, cached))
    )
    for name in ("loss", "validation_loss", "gradient_norm", "gradient_norm/expert"):
        assert got[name] == pytest.approx(want[name], abs=1e-5)


def test_bfloat16_prefixes_survive_the_disk(tiny, tmp_path):
    made = job(tiny(*ALONE))
    cache = cached_features(
        tmp_path / "features",
        made.policy,
        [made.robots[None].dataset],
        made.robots[None].cameras,
        precision="bf16",
        of="prefix",
    )
    item = made.robots[None].dataset[3]
    read = cache.read(int(item["index"]))
    sample = made.policy.pipeline.forward({"images": {"top": item["observation.images.top"]}} | rest(item))
    names = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = made.policy.model.encode_prefix(*[sample[name][None] for name in names]).cache
    got = read["prefix_keys_values"][read["prefix_mask"]]
    assert got.dtype == torch.bfloat16
    assert len(got) == want.length
    for number, layer in enumerate(want.layers):
        for side in (0, 1):
            assert layer[side].dtype == torch.bfloat16
            torch.testing.assert_close(
                got[:, number, side].transpose(0, 1), layer[side][0], atol=0.05, rtol=0.05
            )


def test_a_prefix_belongs_to_weights_prompts_precision_and_frames(tiny, tmp_path):
    made = job(tiny(*PREFIX, f"data.feature_cache={tmp_path / 'features'}", "policy.type=pi05"))
    policy, parts = made.policy, [made.robots[None].dataset, made.robots[None].held_out]

    def folders(precision="no", datasets=parts):
        cached_features(
            tmp_path / "features",
            policy,
            datasets,
            made.robots[None].cameras,
            precision=precision,
            of="prefix",
        )
        return len(list((tmp_path / "features").iterdir()))

    assert folders() == 1
    assert folders(datasets=parts[:1]) == 2
    assert folders(precision="bf16") == 3
    with torch.no_grad():
        next(policy.model.expert.parameters()).add_(1e-3)
    assert folders() == 3
    for part in (policy.model.vision_tower, policy.model.multi_modal_projector, policy.model.language_model):
        before = folders()
        with torch.no_grad():
            next(part.parameters()).add_(1e-3)
        assert folders() == before + 1
    prompt = next(one for one in policy.pipeline.transforms if hasattr(one, "tokenizer"))
    object.__setattr__(prompt, "tokenizer", train_tokenizer(["another one", "0 1 2 3 4 5 6 7 8 9"]))
    before = folders()
    assert folders() == before
    assert before == 7


def test_the_log_says_how_large_it_will_be_and_it_is(tiny, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="vla.train.setup.feature_cache"):
        made = job(tiny(*PREFIX, f"data.feature_cache={tmp_path / 'features'}"))
    (rows,) = (tmp_path / "features").glob("*/rows.bin")
    size = rows.stat().st_size
    assert (
        f"prefix features of {len(made.robots[None].dataset) + len(made.robots[None].held_out)} frames"
        in caplog.text
    )
    assert f": {size / 1e9:.3g} GB" in caplog.text
    config = made.policy.config
    images = 48 * config.tokens_per_image
    per_token = config.depth * 2 * config.num_kv_heads * config.head_dim * 4
    assert size % per_token == 0
    assert size / per_token > images + 48


@pytest.mark.parametrize("options", [[*STILL], [*PREFIX]])
def test_a_disk_that_is_too_small_is_refused_before_anything_is_computed(
    tiny, tmp_path, options, monkeypatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2, 1, 1000))
    monkeypatch.setattr(feature_cache, "_compute", lambda *_: pytest.fail("computed"))
    with pytest.raises(SaveError, match=r"features take .* GB, but .*features has 1e-06 GB free: choose"):
        job(tiny(*options, f"data.feature_cache={tmp_path / 'features'}"))
    assert list((tmp_path / "features").iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache.FrameWriter, "append", full)
    with pytest.raises(SaveError, match="the disk is full"):
        job(tiny(*PREFIX, f"data.feature_cache={tmp_path / 'features'}"))
    assert list((tmp_path / "features").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["policy.freeze=vision"], r"frozen vision-language model.*policy\.freeze=vlm"),
        (["policy.freeze=none"], r"frozen vision-language model"),
        (["data.augment=true"], r"data\.augment=false"),
        (["data.response_key=response"], r"data\.response_key=null"),
    ],
)
def test_a_prefix_that_could_not_be_right_is_refused(tiny, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        job(tiny(*PREFIX, f"data.feature_cache={tmp_path / 'features'}", *change))
    assert not (tmp_path / "features").exists()


def test_an_adapter_of_the_language_model_is_refused_and_one_of_the_expert_is_not(tiny, tmp_path):
    base = tmp_path / "base"
    job(tiny("data.response_key=null")).policy.save_pretrained(base)
    adapted = [
        "data.augment=false",
        "policy.preset=null",
        f"policy.pretrained={base}",
        "data.response_key=null",
        f"data.feature_cache={tmp_path / 'features'}",
        "data.feature_cache_of=prefix",
    ]
    with pytest.raises(ConfigError, match="without an adapter in it"):
        job(tiny(*adapted, "policy.adapter={preset: vlm+expert, rank: 2}"))
    made = job(tiny(*adapted, "policy.adapter={preset: expert, rank: 2}"))
    plain = job(tiny(*adapted[:-2], "policy.adapter={preset: expert, rank: 2}"))
    ours, theirs = ([loss for _, loss in losses(one)] for one in (made, plain))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_nothing_to_see_is_nothing_to_keep(tiny, tmp_path):
    made = job(tiny(*STILL))
    with pytest.raises(ConfigError, match="there is no camera"):
        cached_features(tmp_path / "features", made.policy, [made.robots[None].dataset], {}, precision="no")


def test_the_prefix_needs_a_folder(tiny):
    with pytest.raises(ConfigError, match="feature_cache_of needs a folder"):
        tiny("data.feature_cache_of=prefix")


def test_of_two_that_want_the_same_one_computes_and_the_other_waits(tiny, tmp_path, monkeypatch):
    made, computed, compute = job(tiny(*ALONE)), [], feature_cache._compute
    both = threading.Barrier(2, timeout=60)
    lock = feature_cache.one_at_a_time

    def together(target):
        both.wait()
        return lock(target)

    def slowly(*arguments):
        computed.append(threading.get_ident())
        time.sleep(0.2)
        compute(*arguments)

    monkeypatch.setattr(feature_cache, "one_at_a_time", together)
    monkeypatch.setattr(feature_cache, "_compute", slowly)
    want = partial(
        cached_features,
        tmp_path / "features",
        made.policy,
        [made.robots[None].dataset],
        made.robots[None].cameras,
        precision="no",
    )
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: want(of="prefix"), range(2))
    assert len(computed) == 1
    assert first.store.folder == second.store.folder
    assert [path.name for path in (tmp_path / "features").iterdir()] == [first.store.folder.name]


def test_what_was_changed_on_disk_is_refused(tiny, tmp_path):
    recipe = tiny(*STILL, f"data.feature_cache={tmp_path / 'features'}", "train.steps=2")
    job(recipe)
    (kept,) = (path for path in (tmp_path / "features").iterdir() if path.is_dir())
    whole = (kept / "rows.bin").read_bytes()
    (kept / "rows.bin").write_bytes(bytes(255 - byte for byte in whole))
    with pytest.raises(DatasetError, match=rf"{kept}/rows.bin holds other .*Remove the folder {kept}: its"):
        train(recipe, progress=False)
    assert not (tmp_path / "run" / "checkpoints").exists()
    (kept / "rows.bin").write_bytes(whole)
    renamed = kept.with_name("0" * 32)
    other = tiny(*STILL, f"data.feature_cache={tmp_path / 'features'}", "train.seed=1")
    shutil.move(kept, renamed)
    job(other)
    (second,) = (path for path in (tmp_path / "features").iterdir() if path.is_dir() and path != renamed)
    shutil.rmtree(second)
    shutil.move(renamed, second)
    with pytest.raises(DatasetError, match="holds other features: it was renamed or copied"):
        job(other)
