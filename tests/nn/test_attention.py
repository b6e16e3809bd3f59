import torch
from hypothesis import given
from hypothesis import strategies as st

from vla.nn.attention import KeyValueCache, attend


def naive_attention(q, k, v, mask):
    """Head by head, query by query."""
    b, h, t, e = q.shape
    group = h // k.shape[1]
    out = torch.zeros(b, t, h, e)
    for i in range(b):
        for head in range(h):
            for query in range(t):
                scores = torch.stack([q[i, head, query] @ key for key in k[i, head // group]]) / e**0.5
                if mask is not None:
                    scores = scores.masked_fill(~mask[i, query], float("-inf"))
                out[i, query, head] = scores.softmax(0) @ v[i, head // group]
    return out.flatten(2)


@given(
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_grouped_attention_equals_the_naive_loop(kv_heads, group, masked, seed):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(2, kv_heads * group, 3, 4, generator=g)
    k, v = (torch.randn(2, kv_heads, 5, 4, generator=g) for _ in range(2))
    mask = None
    if masked:
        mask = torch.rand(2, 3, 5, generator=g) > 0.5
        mask[:, :, 0] = True
    torch.testing.assert_close(attend(q, k, v, mask), naive_attention(q, k, v, mask), atol=1e-5, rtol=1e-5)


def make_cache(visible=None):
    layers = ((torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4)),)
    return KeyValueCache(layers, visible, torch.tensor([3, 2]))


def test_append_advances_positions_by_real_tokens_only():
    cache = make_cache(torch.tensor([[True] * 3, [True, True, False]]))
    new = ((torch.ones(2, 1, 2, 4), torch.zeros(2, 1, 2, 4)),)
    longer = cache.append(new, torch.tensor([[True, True], [True, False]]))
    assert longer.length == 5
    assert longer.next_position_b.tolist() == [5, 3]
    assert longer.visible_bs.tolist() == [[True] * 5, [True, True, False, True, False]]
    assert cache.length == 3, "the old cache must not change"


def test_append_without_padding_keeps_the_cache_maskless():
    longer = make_cache().append(((torch.ones(2, 1, 2, 4), torch.zeros(2, 1, 2, 4)),))
    assert longer.visible_bs is None
    assert longer.mask_for(2) is None


def test_mask_for_joins_what_is_visible_with_what_the_new_tokens_see_of_themselves():
    cache = make_cache(torch.tensor([[True] * 3, [True, True, False]]))
    own = torch.tensor([[True, False], [True, True]])
    mask = cache.mask_for(2, own)
    assert mask[1].tolist() == [[True, True, False, True, False], [True, True, False, True, True]]
    only_own = make_cache().mask_for(2, own)
    assert only_own[0].tolist() == [[True, True, True, True, False], [True] * 5]


def test_repeat_serves_every_row_n_times_in_a_row():
    cache = make_cache(torch.tensor([[True] * 3, [True, True, False]])).repeat(2)
    assert cache.next_position_b.tolist() == [3, 3, 2, 2]
    assert torch.equal(cache.layers[0][0][0], cache.layers[0][0][1])
    assert cache.visible_bs.shape == (4, 3)


def test_detach_stops_gradients():
    k = torch.randn(1, 1, 2, 4, requires_grad=True)
    cache = KeyValueCache(((k * 2, k * 3),), None, torch.tensor([2]))
    assert not cache.detach().layers[0][0].requires_grad
