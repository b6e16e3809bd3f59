"""Triton kernels of the matrix products: norms go into them, and what follows into their last lines.

Every kernel multiplies few rows `[m, k]` by a weight `[n, k]` that is read once; each program of the grid
makes `BLOCK_M` rows of `BLOCK_N` columns. A root-mean-square norm is linear but for a factor for each row, so
that the product is taken of the rows as they are, their squares are added up on the way, and the factor
`1 / rms` is multiplied in at the end. An adaptive norm's `1 + scale` is multiplied into the rows on the way;
its shift, which is the same for every row, has become a bias.
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
"""Whether kernels run on a CPU, in Triton's interpreter."""


@triton.jit
def cast(x, dtype: tl.constexpr):
    """Return numbers in another dtype, rounded to the nearest."""
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter itself cuts the last bits off
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        x = ((bits + (0x7FFF + ((bits >> 16) & 1))) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def dot(a, b, total):
    """Add the product of two tiles, in float32 (never TF32)."""
    if (
        INTERPRETED
    ):  # numpy, which the interpreter is written in, knows no bfloat16; float32 holds its products
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def arrives_last(counter, parts: tl.constexpr):
    """Return whether this is the last of the programs that share a tile; all their parts can be read then.

    The counter is at zero again afterwards, so that a recorded graph may be replayed.
    """
    tl.debug_barrier()  # every thread has written its share of the part before the counter says so
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == parts - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def normed_pair(
    x,
    weight,
    gain,
    rows,
    in_rows,
    one,
    other,
    in_columns,
    eps,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return the normed rows' products with two tiles of columns, float32."""
    steps = tl.arange(0, BLOCK_K)
    first = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    second = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    squares = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + steps
        in_k = k < K
        tile = tl.load(x + rows[:, None] * K + k[None, :], mask=in_rows[:, None] & in_k[None, :], other=0.0)
        in_weight = in_k[:, None] & in_columns[None, :]
        tile_one = tl.load(weight + one[None, :] * K + k[:, None], mask=in_weight, other=0.0)
        tile_other = tl.load(weight + other[None, :] * K + k[:, None], mask=in_weight, other=0.0)
        exact = tile.to(tl.float32)
        squares += tl.sum(exact * exact, axis=1)
        if gain is not None:
            tile = cast(exact * tl.load(gain + k, mask=in_k, other=0.0)[None, :], tile_one.dtype)
        first = dot(tile, tile_one, first)
        second = dot(tile, tile_other, second)
    factor = tl.rsqrt(squares / K + eps)[:, None]
    return first * factor, second * factor


@triton.jit(do_not_specialize=["M", "T", "start", "length"])
def qkv(
    x,
    weight,
    gain,
    bias,
    cos,
    sin,
    queries,
    slots,
    M,
    T,
    start,
    length,
    eps,
    K: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Norm, queries, keys and values, rotation; keys and values go to their slots.

    A program makes channels `j` and `j + e / 2` of one head, which turn together.

    Args:
        x: `[b * t, k]`.
        weight: `[(h + 2 kv) e, k]`: the heads of queries, keys and values.
        gain: float32 `[k]`, or None.
        bias: float32, one for each row of `weight`, or None.
        cos: float32 `[b, 1, t, e / 2]`.
        sin: float32 `[b, 1, t, e / 2]`.
        queries: `[b, h, t, e]`, written.
        slots: One layer's `[2, b, kv, length, e]`; keys and values are written behind `start`.
        M: `b * t`.
        T: `t`.
        start: Tokens before these.
        length: Room of the slots.
        eps: The norm's.
        K: Width of the rows.
        HEADS: `h`.
        KV_HEADS: `kv`.
        HALF: `e / 2`.
        BLOCK_M: Rows of a tile.
        BLOCK_N: Pairs of channels of a tile.
        BLOCK_K: Length of a piece of the sum.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tiles: tl.constexpr = (HALF + BLOCK_N - 1) // BLOCK_N
    head = tl.program_id(1) // tiles
    channel = tl.program_id(1) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows, in_half = rows < M, channel < HALF
    one = head * 2 * HALF + channel
    first, second = normed_pair(  # pyright: ignore[reportGeneralTypeIssues]
        x, weight, gain, rows, in_rows, one, one + HALF, in_half, eps, K, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if bias is not None:
        first += tl.load(bias + one, mask=in_half, other=0.0)[None, :]
        second += tl.load(bias + one + HALF, mask=in_half, other=0.0)[None, :]
    written = in_rows[:, None] & in_half[None, :]
    turning = written & (head + 0 * channel < HEADS + KV_HEADS)[None, :]
    angle = rows[:, None] * HALF + channel[None, :]
    c = tl.load(cos + angle, mask=turning, other=1.0)  # values turn by nothing
    s = tl.load(sin + angle, mask=turning, other=0.0)
    turned_first, turned_second = first * c - second * s, second * c + first * s
    batch, token = rows // T, rows % T
    if head < HEADS:
        places = queries + (((batch * HEADS + head) * T + token) * (2 * HALF))[:, None] + channel[None, :]
        tl.store(places, cast(turned_first, queries.dtype.element_ty), mask=written)
        tl.store(places + HALF, cast(turned_second, queries.dtype.element_ty), mask=written)
    else:
        kind, kv_head = (head - HEADS) // KV_HEADS, (head - HEADS) % KV_HEADS
        sequence = (kind * (M // T) + batch) * KV_HEADS + kv_head
        places = slots + ((sequence * length + start + token) * (2 * HALF))[:, None] + channel[None, :]
        tl.store(places, cast(turned_first, slots.dtype.element_ty), mask=written)
        tl.store(places + HALF, cast(turned_second, slots.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=["M"])
def geglu(
    x,
    weight,
    gain,
    bias,
    out,
    M,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Norm, gate and up, `gelu(gate) * up` (the tanh form of gelu).

    Args:
        x: `[m, k]`.
        weight: `[2 n, k]`: gate, then up.
        gain: float32 `[k]`, or None.
        bias: float32 `[2 n]`, or None.
        out: `[m, n]`, written.
        M: Rows.
        eps: The norm's.
        N: Width of the MLP.
        K: Width of the rows.
        BLOCK_M: Rows of a tile.
        BLOCK_N: Columns of a tile.
        BLOCK_K: Length of a piece of the sum.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows, in_columns = rows < M, columns < N
    gate, up = normed_pair(  # pyright: ignore[reportGeneralTypeIssues]
        x, weight, gain, rows, in_rows, columns, columns + N, in_columns, eps, K, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if bias is not None:
        gate += tl.load(bias + columns, mask=in_columns, other=0.0)[None, :]
        up += tl.load(bias + N + columns, mask=in_columns, other=0.0)[None, :]
    # 1 + tanh(z) = 2 sigmoid(2 z)
    made = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)) * up
    places = out + rows[:, None] * N + columns[None, :]
    tl.store(places, cast(made, out.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])


@triton.jit
def normed_product(
    x,
    weight,
    gain,
    rows,
    in_rows,
    columns,
    in_columns,
    eps,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return the normed rows' product with a tile of columns, float32."""
    steps = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    squares = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + steps
        in_k = k < K
        tile = tl.load(x + rows[:, None] * K + k[None, :], mask=in_rows[:, None] & in_k[None, :], other=0.0)
        in_weight = in_k[:, None] & in_columns[None, :]
        of_weight = tl.load(weight + columns[None, :] * K + k[:, None], mask=in_weight, other=0.0)
        exact = tile.to(tl.float32)
        squares += tl.sum(exact * exact, axis=1)
        if gain is not None:
            tile = cast(exact * tl.load(gain + k, mask=in_k, other=0.0)[None, :], of_weight.dtype)
        total = dot(tile, of_weight, total)
    return total * tl.rsqrt(squares / K + eps)[:, None]


@triton.jit
def finish(total, bias, gate, residual, out, rows, columns, written, N: tl.constexpr, SILU: tl.constexpr):
    """Write `residual + gate * act(total + bias)`, or what of it there is."""
    in_columns = columns < N
    if bias is not None:
        total += tl.load(bias + columns, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    if SILU:
        total *= tl.sigmoid(total)
    if gate is not None:
        total *= tl.load(gate + columns, mask=in_columns, other=0.0)[None, :]
    places = rows[:, None] * N + columns[None, :]
    if residual is not None:
        total += tl.load(residual + places, mask=written, other=0.0).to(tl.float32)
    tl.store(out + places, cast(total, out.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=["M"])
def product(
    x,
    weight,
    bias,
    gate,
    residual,
    out,
    parts,
    counters,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    SILU: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`out = residual + gate * act(x @ weight.T + bias)`; the sum may be split over programs.

    With more than one split, each program leaves its part in `parts`, and the last one adds them up, always
    in the same order.

    Args:
        x: `[m, k]`, cast to the weight's dtype.
        weight: `[n, k]`.
        bias: `[n]`, or None.
        gate: float32 `[n]`, or None.
        residual: `[m, n]`, or None; may be `out`.
        out: `[m, n]`, written.
        parts: float32, room for `SPLITS * m * n`.
        counters: int32, a zero for each tile.
        M: Rows.
        N: Columns.
        K: Width of the rows.
        SILU: Whether the activation is SiLU, or none.
        SPLITS: Programs that share a tile.
        BLOCK_M: Rows of a tile.
        BLOCK_N: Columns of a tile.
        BLOCK_K: Length of a piece of the sum.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    in_rows, in_columns = rows < M, columns < N
    share: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    steps = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, share, BLOCK_K):
        k = split * share + start + steps
        in_k = k < K
        tile = tl.load(x + rows[:, None] * K + k[None, :], mask=in_rows[:, None] & in_k[None, :], other=0.0)
        in_weight = in_k[:, None] & in_columns[None, :]
        of_weight = tl.load(weight + columns[None, :] * K + k[:, None], mask=in_weight, other=0.0)
        total = dot(cast(tile, of_weight.dtype), of_weight, total)
    written = in_rows[:, None] & in_columns[None, :]
    if SPLITS == 1:
        finish(total, bias, gate, residual, out, rows, columns, written, N, SILU)
    else:
        places = rows[:, None] * N + columns[None, :]
        tl.store(parts + split * M * N + places, total, mask=written)
        tile_number = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        if arrives_last(counters + tile_number, SPLITS):
            total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
            for part in range(SPLITS):  # past the first-level cache, which may hold what was there before
                total += tl.load(parts + part * M * N + places, mask=written, other=0.0, cache_modifier=".cg")
            finish(total, bias, gate, residual, out, rows, columns, written, N, SILU)


@triton.jit(do_not_specialize=["M", "A"])
def project(
    x,
    weight,
    gain,
    bias,
    begin,
    absent,
    residual,
    out,
    M,
    A,
    factor,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The last norm, the velocity, and the solver's step: `out = residual + factor * velocity`.

    Args:
        x: `[b * a, k]`.
        weight: `[n, k]`.
        gain: float32 `[k]`, or None.
        bias: float32 `[n]`, or None.
        begin: float32 `[b * a, n]`, the noise; dimensions that are absent move from there to zero.
        absent: bool `[b, n]`, or None.
        residual: float32 `[b * a, n]`, or None; may be `out`.
        out: float32 `[b * a, n]`, written.
        M: `b * a`.
        A: `a`, steps of a chunk.
        factor: The step's length.
        eps: The norm's.
        N: Action dimensions.
        K: Width of the rows.
        BLOCK_M: Rows of a tile.
        BLOCK_N: Columns of a tile.
        BLOCK_K: Length of a piece of the sum.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows, in_columns = rows < M, columns < N
    velocity = normed_product(
        x, weight, gain, rows, in_rows, columns, in_columns, eps, K, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if bias is not None:
        velocity += tl.load(bias + columns, mask=in_columns, other=0.0)[None, :]
    places, written = rows[:, None] * N + columns[None, :], in_rows[:, None] & in_columns[None, :]
    if absent is not None:
        of_row = absent + (rows // A)[:, None] * N + columns[None, :]
        missing = tl.load(of_row, mask=written, other=0) != 0
        velocity = tl.where(missing, -tl.load(begin + places, mask=written, other=0.0), velocity)
    velocity *= factor
    if residual is not None:
        velocity += tl.load(residual + places, mask=written, other=0.0)
    tl.store(out + places, velocity, mask=written)
