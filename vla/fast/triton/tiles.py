"""How large the kernels' tiles are: of a few candidates the fastest, found before a graph is recorded."""

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch

from vla.fast.triton.available import kernel_errors

logger = logging.getLogger(__name__)

MAX_SPLITS = 8
"""Programs that share a tile at most: the last one reads what all of them made."""

REPLAYS = 5
"""Times that a candidate is timed; the fastest counts."""


class Tiles(NamedTuple):
    """The part of a product that one program makes.

    Attributes:
        rows: Rows of the result.
        columns: Columns of the result; of attention: none.
        inner: Length of a piece of the sum; of attention: keys.
        splits: Programs that share one tile, each with a part of the sum.
        warps: Groups of 32 threads that run a program.
        stages: Pieces that are loaded ahead.
    """

    rows: int
    columns: int
    inner: int
    splits: int = 1
    warps: int = 4
    stages: int = 3


INTERPRETED = Tiles(32, 32, 32, splits=2)
"""Tiles on a CPU, where every program costs the same."""

SHAPES: dict[str, tuple[Tiles, ...]] = {
    "qkv": (Tiles(64, 16, 128, stages=4), Tiles(64, 16, 256), Tiles(64, 16, 64, stages=5)),
    "geglu": (Tiles(64, 32, 128, stages=4), Tiles(64, 16, 128, stages=4), Tiles(64, 32, 64, stages=5)),
    "product": (Tiles(64, 32, 128, stages=4), Tiles(64, 64, 128), Tiles(64, 32, 64, stages=5)),
    "project": (Tiles(16, 16, 128), Tiles(16, 16, 64)),
    "attention": (
        Tiles(16, 0, 64, stages=2),
        Tiles(32, 0, 64, stages=2),
        Tiles(64, 0, 64, warps=8, stages=2),
    ),
}
"""Candidates of each kernel in bfloat16; one of them fits the 99 KiB that smaller cards share in a core."""


def candidates(
    kernel: str, rows: int, columns: int, inner: int, dtype: torch.dtype, device: torch.device
) -> list[Tiles]:
    """Return the tiles that a kernel may have.

    Args:
        kernel: A name of `SHAPES`.
        rows: Rows of the result.
        columns: Columns of the result; of attention: sequences that are worked on at once.
        inner: Length of the sum; of attention: keys.
        dtype: Dtype of the weights.
        device: Where the kernel runs; sums are split until each of its cores has a program.
    """
    if device.type == "cpu":
        return [INTERPRETED if kernel in ("product", "attention") else INTERPRETED._replace(splits=1)]
    cores = core_count(device)
    made = [_fitted(kernel, one, rows, dtype) for one in SHAPES[kernel]]
    if kernel == "product":
        made = [_split(one, rows, columns, inner, cores) for one in made]
    elif kernel == "attention":
        made = [_shared(one, rows, columns, inner, cores) for one in made]
    return list(dict.fromkeys(made))


def core_count(device: torch.device) -> int:
    """Return how many programs a CUDA device runs at once, at one each."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def _fitted(kernel: str, tiles: Tiles, rows: int, dtype: torch.dtype) -> Tiles:
    """Return tiles that are no taller than needed; float32 has no tensor cores, and twice the size."""
    needed = next((size for size in (16, 32) if rows <= size), 64)
    if dtype == torch.bfloat16:
        return tiles._replace(rows=min(tiles.rows, needed))
    stages = 1 if kernel == "attention" else 2
    inner = 16 if kernel == "attention" else 32
    return tiles._replace(rows=min(tiles.rows, needed, 16), inner=inner, warps=4, stages=stages)


def _split(tiles: Tiles, rows: int, columns: int, inner: int, cores: int) -> Tiles:
    programs = -(-rows // tiles.rows) * -(-columns // tiles.columns)
    return tiles._replace(splits=max(1, min(MAX_SPLITS, cores // programs, inner // tiles.inner)))


def _shared(tiles: Tiles, rows: int, sequences: int, keys: int, cores: int) -> Tiles:
    programs = -(-rows // tiles.rows) * sequences
    most = min(MAX_SPLITS, 128 // tiles.rows, keys // tiles.inner)
    return tiles._replace(splits=max(1, min(most, cores // programs)))


CHOSEN: dict[Hashable, Tiles] = {}
"""The fastest tiles so far, by what their choice depends on."""


def choose(
    key: Hashable, options: Sequence[Tiles], run: Callable[[Tiles], None], device: torch.device
) -> Tiles:
    """Return the fastest of some tiles, remembered by `key`. Never called while a graph is recorded.

    Args:
        key: What else the choice depends on.
        options: Candidates; those that do not fit the card are left out.
        run: Runs the kernel with given tiles, on all layers in turn, so that weights come from memory and
            not from a cache.
        device: Where it runs.

    Raises:
        TritonError: No candidate fits.
    """
    if len(options) == 1:
        return options[0]
    if key in CHOSEN:
        return CHOSEN[key]
    taken: dict[Tiles, float] = {}
    failed: Exception | None = None
    for tiles in options:
        try:
            taken[tiles] = _milliseconds(lambda tiles=tiles: run(tiles), device)
        except kernel_errors() as error:
            failed = error
    if not taken:
        assert failed is not None
        raise failed
    best = min(taken, key=lambda tiles: taken[tiles])
    logger.debug("%s: %s, of %s", key, best, taken)
    CHOSEN[key] = best
    return best


def _milliseconds(run: Callable[[], None], device: torch.device) -> float:
    """Return the time of a run, replayed from a graph: started one by one, kernels wait for Python."""
    run()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the device
        run()
    taken = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize(device)
        taken.append(start.elapsed_time(end))
    return min(taken)
