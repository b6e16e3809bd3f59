"""Every product against the same in float64, at sizes that are no multiples of the tiles."""

from dataclasses import replace

import pytest
import torch

from tests.fast.triton.conftest import DEVICE, compare, guarded, normed, numbers
from vla.fast.triton.forms import Branch
from vla.fast.triton.launch import Kernels
from vla.fast.triton.tiles import Tiles

EPS = 1e-3
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of the interpreter's sigmoid
DTYPES = (torch.float32, torch.bfloat16)
NOTHING = Branch(None, None, None)


def make_kernels(batch=1, tokens=1, heads=2, kv_heads=1, head_dim=8, dtype=torch.float32) -> Kernels:
    return Kernels(batch, tokens, heads, kv_heads, head_dim, EPS, dtype, DEVICE)


def added(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x if bias is None else x + bias.double()


def of_time(adaptive: bool, inner: int, columns: int) -> Branch:
    """What an adaptive norm needs; or nothing."""
    if not adaptive:
        return NOTHING
    return Branch(numbers(inner, seed=1), numbers(columns, seed=2), numbers(inner, seed=3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestQkv:
    # batch, tokens, width, query heads, key/value heads, head width, tokens before, tokens behind, adaptive
    @pytest.mark.parametrize(
        "sizes",
        [
            (1, 1, 16, 2, 1, 8, 0, 0, False),
            (2, 5, 24, 4, 1, 8, 3, 2, True),
            (1, 19, 40, 2, 2, 12, 7, 0, False),
            (3, 6, 16, 3, 1, 36, 1, 1, True),
        ],
    )
    def test_heads_turn_and_keys_and_values_go_to_their_slots(self, sizes, dtype):
        batch, tokens, width, heads, kv_heads, head_dim, before, behind, adaptive = sizes
        x, rows = numbers(batch * tokens, width, dtype=dtype), (heads + 2 * kv_heads) * head_dim
        weight, time = numbers(rows, width, dtype=dtype), of_time(adaptive, width, rows)
        angle = numbers(batch, 1, tokens, head_dim // 2, seed=5)
        cos, sin = angle.cos(), angle.sin()
        queries, fence = guarded(batch, heads, tokens, head_dim, dtype=dtype)
        slots = numbers(2, batch, kv_heads, before + tokens + behind, head_dim, dtype=dtype)
        kept = slots.clone()
        kernels = make_kernels(batch, tokens, heads, kv_heads, head_dim, dtype)
        kernels.qkv(Tiles(16, 16, 16), x, weight, time, cos, sin, queries, slots, before)
        made = added(normed(x, time.gain, EPS) @ weight.double().T, time.bias)
        made = made.view(batch, tokens, heads + 2 * kv_heads, head_dim).transpose(1, 2)
        first, second = made.chunk(2, dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        compare(queries, turned[:, :heads])
        here = slice(before, before + tokens)
        compare(slots[0, :, :, here].clone(), turned[:, heads : heads + kv_heads])
        compare(slots[1, :, :, here].clone(), made[:, heads + kv_heads :])
        kept[:, :, :, here] = slots[:, :, :, here]
        assert torch.equal(slots, kept)  # nothing before or behind
        assert (fence == 7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestGeglu:
    @pytest.mark.parametrize("adaptive", [False, True])
    @pytest.mark.parametrize(("rows", "width", "columns"), [(1, 16, 16), (17, 40, 20)])
    def test_gate_and_up(self, rows, width, columns, adaptive, dtype):
        x, weight = numbers(rows, width, dtype=dtype), numbers(2 * columns, width, dtype=dtype)
        time = of_time(adaptive, width, 2 * columns)
        out, fence = guarded(rows, columns, dtype=dtype)
        make_kernels(rows, dtype=dtype).geglu(Tiles(16, 16, 16), x, weight, time, out)
        both = added(normed(x, time.gain, EPS) @ weight.double().T, time.bias)
        gate, up = both.split(columns, dim=-1)
        compare(out, torch.nn.functional.gelu(gate, approximate="tanh") * up)
        assert (fence == 7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestProduct:
    @pytest.mark.parametrize(
        ("rows", "inner", "columns", "splits"),
        [(1, 16, 16, 1), (18, 70, 40, 1), (18, 70, 40, 2), (18, 129, 17, 5), (2, 20, 16, 4)],
    )
    def test_onto_a_gated_residual_that_it_overwrites(self, rows, inner, columns, splits, dtype):
        x, weight = numbers(rows, inner, dtype=dtype), numbers(columns, inner, dtype=dtype)
        residual, gate = numbers(rows, columns, dtype=dtype, seed=2), numbers(columns, seed=3)
        kernels, tiles = make_kernels(rows, dtype=dtype), Tiles(16, 16, 16, splits)
        kernels.make_room("product", tiles, rows, columns)
        kernels.room.parts.fill_(torch.nan)
        out, fence = guarded(rows, columns, dtype=dtype)
        for _ in range(2):  # the second finds the counters as the first has left them
            out.copy_(residual)
            kernels.product(tiles, x, weight, out, gate=gate, residual=out)
            compare(out, residual.double() + gate.double() * (x.double() @ weight.double().T))
        assert kernels.room.counters.any().item() is False
        assert (fence == 7).all()

    @pytest.mark.parametrize("silu", [False, True])
    def test_an_embedding_of_float32_with_a_bias(self, silu, dtype):
        x, weight = numbers(5, 8), numbers(20, 8, dtype=dtype)
        bias, (out, fence) = numbers(20, dtype=dtype, seed=1), guarded(5, 20, dtype=dtype)
        make_kernels(5).product(Tiles(16, 16, 16), x, weight, out, bias=bias, silu=silu)
        want = added(x.to(dtype).double() @ weight.double().T, bias)
        compare(out, torch.nn.functional.silu(want) if silu else want)
        assert (fence == 7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestProject:
    # batch, steps, width, action dimensions
    @pytest.mark.parametrize("sizes", [(1, 1, 16, 4), (2, 9, 40, 18), (3, 6, 20, 32)])
    @pytest.mark.parametrize("adaptive", [False, True])
    def test_a_step_of_the_solver(self, sizes, adaptive, dtype):
        batch, steps, width, dims = sizes
        x, weight = numbers(batch * steps, width, dtype=dtype), numbers(dims, width, dtype=dtype)
        time = replace(of_time(adaptive, width, dims), gate=None)
        begin, start = numbers(batch, steps, dims), numbers(batch, steps, dims, seed=1)
        absent = (torch.arange(dims, device=DEVICE) > dims // 2).expand(batch, -1).clone()
        absent[0] = False  # each row has dimensions of its own
        kernels = make_kernels(batch, steps, dtype=dtype)
        velocity = added(normed(x, time.gain, EPS) @ weight.double().T, time.bias).view(batch, steps, dims)
        out, fence = guarded(batch, steps, dims)
        kernels.project(Tiles(16, 16, 16), x, weight, time, begin, None, None, out, 1.0)
        compare(out, velocity)
        out.copy_(start)
        kernels.project(Tiles(16, 16, 16), x, weight, time, begin, absent, out, out, 0.25)
        moved = torch.where(absent[:, None], -begin.double(), velocity)
        compare(out, start.double() + 0.25 * moved)
        assert (fence == 7).all()
