"""Attention against the plain path's in float64: heads as rows, hidden keys, keys shared among programs."""

import pytest
import torch

from tests.fast.triton.conftest import DEVICE, compare, guarded, numbers
from vla.fast.triton.launch import Kernels
from vla.fast.triton.tiles import Tiles
from vla.nn.attention import attend

# batch, tokens, heads, key/value heads, head width, keys, room
SIZES = [(1, 1, 2, 1, 8, 5, 5), (2, 6, 4, 1, 20, 37, 40), (1, 9, 4, 2, 16, 70, 70), (2, 2, 2, 2, 24, 16, 17)]
SINGLE, HALF = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("splits", "hidden", "dtype"), [(1, False, SINGLE), (1, True, HALF), (3, False, HALF), (3, True, SINGLE)]
)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_the_plain_attention(sizes, hidden, splits, dtype):
    batch, tokens, heads, kv_heads, width, keys, room = sizes
    queries = numbers(batch, heads, tokens, width, dtype=dtype)
    slots = numbers(2, batch, kv_heads, room, width, dtype=dtype, seed=1)
    slots[:, :, :, keys:] = torch.nan  # not there yet
    visible = None
    if hidden:  # each row hides others, among them whole tiles
        visible = torch.zeros(batch, keys, dtype=torch.bool, device=DEVICE)
        for row in range(batch):
            visible[row, row % 2 :: row + 2] = True
            visible[row, : keys // 2] = row == 1
        visible[:, -1] = True
    kernels = Kernels(batch, tokens, heads, kv_heads, width, 1e-6, dtype, DEVICE)
    tiles = Tiles(16, 0, 16, splits)
    kernels.make_room("attention", tiles, heads // kv_heads * tokens, batch * kv_heads)
    kernels.room.parts.fill_(torch.nan)
    kernels.room.pieces.fill_(torch.nan)
    out, fence = guarded(batch, tokens, heads * width, dtype=dtype)
    for _ in range(2):
        kernels.attention(tiles, queries, slots, visible, out, keys)
    mask = None if visible is None else visible[:, None].expand(-1, tokens, -1)
    seen = slots[:, :, :, :keys].double()
    compare(out, attend(queries.double(), *seen, mask))
    assert (fence == 7).all()
    assert kernels.room.counters.any().item() is False
    assert kernels.launches == {"attention": 2}
