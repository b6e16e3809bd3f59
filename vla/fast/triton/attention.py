"""Triton kernel of a suffix's attention: few queries against the keys and values of a whole sequence."""

import triton
import triton.language as tl

from vla.fast.triton.products import arrives_last, cast, dot


@triton.jit
def attend_to(
    q,
    keys,
    values,
    visible,
    begin,
    end,
    scale,
    E: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return largest scores, sums of exponentials and weighted values of a tile of queries over some keys."""
    channel, steps = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    in_e = channel < E
    peak = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((BLOCK_M,), dtype=tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_E), dtype=tl.float32)
    for start in range(begin, end, BLOCK_K):
        key = start + steps
        counted = key < end
        there = counted[:, None] & in_e[None, :]
        k = tl.load(
            keys + key[None, :] * E + channel[:, None], mask=counted[None, :] & in_e[:, None], other=0.0
        )
        v = tl.load(values + key[:, None] * E + channel[None, :], mask=there, other=0.0)
        if visible is not None:
            counted &= tl.load(visible + key, mask=counted, other=0) != 0
        scores = dot(q, k, tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)) * scale
        scores = tl.where(counted[None, :], scores, float("-inf"))
        larger = tl.maximum(peak, tl.max(scores, axis=1))
        against = tl.where(larger == float("-inf"), 0.0, larger)
        shares = tl.exp2(scores - against[:, None])
        fading = tl.exp2(peak - against)
        weight = weight * fading + tl.sum(shares, axis=1)
        total = dot(cast(shares, v.dtype), v, total * fading[:, None])
        peak = larger
    return peak, weight, total


@triton.jit
def joined(parts, pieces, rows, in_rows, channel, there, number, E: tl.constexpr, SPLITS: tl.constexpr):
    """Return the attention's result from what all programs of a tile have left."""
    peak = tl.load(pieces + rows, mask=in_rows, other=0.0, cache_modifier=".cg")
    for split in range(1, SPLITS):
        of_split = tl.load(pieces + split * 2 * number + rows, mask=in_rows, other=0.0, cache_modifier=".cg")
        peak = tl.maximum(peak, of_split)
    weight = tl.zeros_like(peak)
    total = tl.zeros(there.shape, dtype=tl.float32)
    for split in range(SPLITS):
        piece = pieces + split * 2 * number + rows
        place = parts + (split * number + rows)[:, None] * E + channel[None, :]
        # A program without keys has left -inf, which counts for nothing; some program had one.
        share = tl.exp2(tl.load(piece, mask=in_rows, other=0.0, cache_modifier=".cg") - peak)
        weight += share * tl.load(piece + number, mask=in_rows, other=1.0, cache_modifier=".cg")
        total += share[:, None] * tl.load(place, mask=there, other=0.0, cache_modifier=".cg")
    return total / weight[:, None]


@triton.jit(do_not_specialize=["T", "seen", "length"])
def attention(
    queries,
    slots,
    visible,
    out,
    parts,
    pieces,
    counters,
    T,
    seen,
    length,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    E: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Softmax attention in which the query heads of one key/value head are rows of it.

    The keys may be split over programs, the last of which joins what the others made.

    Args:
        queries: `[b, h, t, e]`.
        slots: One layer's `[2, b, kv, length, e]`.
        visible: bool `[b, seen]`, which keys count, for all queries alike; or None.
        out: `[b, t, h * e]`, written.
        parts: float32, room for `b * kv * SPLITS * rows * e`, with `rows = h / kv * t`.
        pieces: float32, room for `2 * b * kv * SPLITS * rows`.
        counters: int32, a zero for each block of rows.
        T: `t`.
        seen: Keys.
        length: Room of the slots.
        scale: What scores are multiplied by, and log2(e).
        HEADS: `h`.
        KV_HEADS: `kv`.
        E: `e`.
        BLOCK_E: A power of two from 16 on that holds `e`.
        SPLITS: Programs that share the keys.
        BLOCK_M: Rows of a tile.
        BLOCK_K: Keys of a tile.
    """
    groups: tl.constexpr = HEADS // KV_HEADS
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    split, sequence = tl.program_id(1), tl.program_id(2)
    batch, kv_head = sequence // KV_HEADS, sequence % KV_HEADS
    number = groups * T
    channel = tl.arange(0, BLOCK_E)
    in_rows, in_e = rows < number, channel < E
    there = in_rows[:, None] & in_e[None, :]
    q = tl.load(queries + (sequence * number + rows)[:, None] * E + channel[None, :], mask=there, other=0.0)
    keys = slots + sequence * length * E
    values = keys + tl.num_programs(2) * length * E
    share = tl.cdiv(tl.cdiv(seen, BLOCK_K), SPLITS) * BLOCK_K
    begin, end = split * share, tl.minimum((split + 1) * share, seen)
    if visible is not None:
        visible += batch * seen
    peak, weight, total = attend_to(q, keys, values, visible, begin, end, scale, E, BLOCK_E, BLOCK_M, BLOCK_K)
    token, head = rows % T, kv_head * groups + rows // T
    places = out + (((batch * T + token) * HEADS + head) * E)[:, None] + channel[None, :]
    if SPLITS == 1:
        tl.store(places, cast(total / weight[:, None], out.dtype.element_ty), mask=there)
    else:
        parts += sequence * SPLITS * number * E
        pieces += sequence * SPLITS * 2 * number
        piece = pieces + split * 2 * number + rows
        tl.store(piece, peak, mask=in_rows)
        tl.store(piece + number, weight, mask=in_rows)
        tl.store(parts + (split * number + rows)[:, None] * E + channel[None, :], total, mask=there)
        if arrives_last(counters + sequence * tl.num_programs(0) + tl.program_id(0), SPLITS):
            made = joined(parts, pieces, rows, in_rows, channel, there, number, E, SPLITS)
            tl.store(places, cast(made, out.dtype.element_ty), mask=there)
