"""What is kept of a frame, and what `forward` gets for it."""

import pickle

import pytest
import torch

from vla.policies.flow.cache import PrefixCache, VisionFeatures
from vla.policies.registry import make_policy


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return make_policy("pi0", {}, "tiny").eval()


def test_features_of_absent_cameras_are_zeros(policy):
    batch, kept = policy.example_batch(2, cameras=2), VisionFeatures()
    with torch.no_grad():
        first, _ = kept.compute(policy, batch)
        want = policy.model.encode_images(batch["pixel_values"][0])
    assert first.shape[1:] == kept.row(policy.config)
    got = kept.to_batch(first, kept.constants({"pixel_mask": batch["pixel_mask"][0]}), longest=2)
    assert got["pixel_mask"].tolist() == [True, True, False]
    torch.testing.assert_close(got["image_features"][:2], want[:2])
    assert not got["image_features"][2].any()


def test_prefixes_are_padded_to_the_longest(policy):
    batch, kept = policy.example_batch(2, text_tokens=6), PrefixCache()
    batch["attention_mask"][1, 4:] = 0
    with torch.no_grad():
        rows = kept.compute(policy, batch)
    images = 3 * policy.config.tokens_per_image
    assert [len(one) for one in rows] == [images + 6, images + 4]
    assert rows[0].shape[1:] == kept.row(policy.config)
    got = kept.to_batch(rows[1], {}, longest=images + 6)
    assert got["prefix_mask"].sum() == images + 4
    assert got["prefix_keys_values"][: images + 4].equal(rows[1])
    assert not got["prefix_keys_values"][images + 4 :].any()


def test_what_is_trained_makes_no_feature(policy):
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    for choice, kept in policy.cacheable().items():
        used = {names[id(p)] for module in kept.modules(policy) for p in module.parameters()}
        frozen = policy.parts.frozen_prefixes("vlm" if choice == "prefix" else choice)
        assert used == {name for name in names.values() if name.startswith(frozen)}
        assert type(pickle.loads(pickle.dumps(kept))) is type(kept)
