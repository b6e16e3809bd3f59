"""What is kept of a frame, and what `forward` gets for it."""

import pickle

import pytest
import torch

from vla.nn.attention import KeyValueCache
from vla.policies.flow.cache import PrefixCache, VisionFeatures, pack_prefix, unpack_prefix
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


def test_a_packed_cache_comes_back_without_what_nobody_sees():
    layers = tuple((torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)) for _ in range(2))
    visible = torch.tensor([[True, False, True, False, False], [True, True, True, False, False]])
    keys_values, real = pack_prefix(KeyValueCache(layers, visible, visible.sum(1)))
    assert keys_values.shape == (2, 5, 2, 2, 3, 4)
    assert torch.equal(real, visible)
    assert torch.equal(keys_values[1, 2, 1, 0], layers[1][0][1, :, 2])  # a token's keys of the second layer
    assert torch.equal(keys_values[1, 2, 0, 1], layers[0][1][1, :, 2])
    # Kept one by one without padding, and padded anew.
    rows = [row[mask] for row, mask in zip(keys_values, real, strict=True)]
    padded = torch.stack(
        [torch.cat([row, row.new_full((6 - len(row), *row.shape[1:]), 9.0)]) for row in rows]
    )
    mask = torch.arange(6) < torch.tensor([[2], [3]])
    back = unpack_prefix(padded, mask, [2, 3])
    assert back.length == 3
    assert back.next_position_b.tolist() == [2, 3]
    assert back.visible_bs.tolist() == [[True, True, False], [True] * 3]
    for layer, old in zip(back.layers, layers, strict=True):
        for got, want in zip(layer, old, strict=True):
            assert torch.equal(got[0, :, :2], want[0][:, [0, 2]])
            assert torch.equal(got[1], want[1][:, :3])


def test_a_packed_cache_without_padding_has_no_mask():
    layers = ((torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4)),)
    cache = KeyValueCache(layers, None, torch.tensor([3, 3]))
    back = unpack_prefix(*pack_prefix(cache), [3, 3])
    assert back.visible_bs is None
    assert all(torch.equal(a, b) for a, b in zip(back.layers[0], cache.layers[0], strict=True))
    assert back.next_position_b.tolist() == [3, 3]
