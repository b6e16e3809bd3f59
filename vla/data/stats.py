"""Normalisation statistics, exact and in bounded memory.

Counted is what the model sees: the state of every frame once, and every step of every chunk that lies
inside its episode, after the transforms that precede normalisation. With delta actions a step's value
depends on the frame its chunk starts from, so a frame of the dataset counts up to H times. That expanded
array is never held: two passes go over it in blocks, in several threads where there is much to count. The
result does not depend on their number, to the bit: whole numbers may be added in any order, and what is a
float is added up block by block in the dataset's order.

Quantiles are order statistics found by their bits. A float32 is turned into a 32-bit number that sorts
the same way; the first pass counts how often each upper half occurs, which says in which of 65,536 bins
the wanted rank lies; the second counts the lower halves within those bins, which says the number itself.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock

import numpy as np
import torch

from vla.data.dataset import LeRobotDataset
from vla.data.windows import windows
from vla.errors import ConfigError, DatasetError
from vla.machine import cores
from vla.transforms.actions import DeltaActions, check_delta_places
from vla.transforms.base import Pipeline
from vla.transforms.normalize import FeatureStats, Statistics
from vla.types import ProgressCallback, as_count

CONVENTION = (
    "state: every frame once; actions: every chunk step inside its episode, "
    "horizon {horizon}, {transforms}; population std; exact quantiles, linear between ranks"
)
"""`horizon` says where chunks begin as well, where they do not begin with the present frame."""
_QUANTILES = (0.01, 0.99)
_BLOCK = 2_000_000  # values of the expanded actions in memory at once: 8 MB
_BINS = 1 << 16
_MOST_THREADS = 8  # each holds a block and its sorting keys, some 60 MB

Block = tuple[int, int, int, int]
"""First row, last row (excluded), the episode's start and stop: a part of an episode."""


def compute_statistics(
    dataset: LeRobotDataset,
    pipeline_before_normalize: Pipeline | None = None,
    progress: ProgressCallback | None = None,
    threads: int | None = None,
) -> Statistics:
    """Compute mean, standard deviation, range and 1 % / 99 % quantiles of state and actions.

    Args:
        dataset: Its videos are not touched.
        pipeline_before_normalize: Transforms that change state and actions before they are normalised
            (delta actions); `pipeline.before(Normalize)`. They get `{"state": [n, m], "actions": [n, a, m]}`.
        progress: Called with (blocks done, blocks in all).
        threads: How many count at once; None takes the processor's cores, at most 8, and one where little
            is to be counted. The numbers are the same.

    Returns:
        Statistics of `"state"` and `"actions"`; quantiles as `np.quantile(..., method="linear")`.

    Raises:
        ConfigError: An argument is of another kind, or by the dataset's names a delta takes the state of
            another dimension.
        DatasetError: A transform turned a value into one that is not finite.
    """
    if not isinstance(dataset, LeRobotDataset):
        raise ConfigError(
            f"Statistics are those of whole episodes of a LeRobotDataset, got a {type(dataset).__name__}: "
            "choose the episodes with LeRobotDataset(..., episodes=[...])."
        )
    threads = None if threads is None else as_count(threads, "threads")
    pipeline = pipeline_before_normalize or Pipeline(())
    if not callable(getattr(pipeline, "forward", None)):
        raise ConfigError(
            f"pipeline_before_normalize must be a Pipeline, got a {type(pipeline).__name__}: see "
            "policy.pipeline.before(Normalize)."
        )
    _check_deltas(dataset, pipeline)
    blocks = split_into_blocks(dataset)
    shares = _shares(blocks, threads or _worthwhile_threads(dataset))
    tick = _Ticks(2 * len(blocks), progress)

    def count_first(share: Sequence[Block]) -> dict[str, _Feature]:
        found: dict[str, _Feature] = {}
        for block in share:
            for name, (values, _) in block_values(dataset, pipeline, block).items():
                _check_finite(name, values)
                found.setdefault(name, _Feature(values.shape[1])).first(values)
            tick()
        return found

    def count_second(share: Sequence[Block], counters: dict[str, _Feature]) -> dict[str, _Feature]:
        for block in share:
            for name, (values, _) in block_values(dataset, pipeline, block).items():
                counters[name].second(values)
            tick()
        return counters

    with ThreadPoolExecutor(len(shares), thread_name_prefix="statistics") as pool:
        features, *others = pool.map(count_first, shares)
        for name, feature in features.items():
            for other in others:
                feature.add_first(other[name])
            feature.begin_second()
        fresh = [{name: feature.for_second() for name, feature in features.items()} for _ in shares]
        for counted in pool.map(count_second, shares, fresh):
            for name, feature in features.items():
                feature.add_second(counted[name])
    names = ", ".join(transform.name for transform in pipeline.transforms)
    return Statistics(
        features={name: feature.result() for name, feature in features.items()},
        convention=CONVENTION.format(
            horizon=_horizon(dataset), transforms=f"after {names}" if names else "as recorded"
        ),
        source=dataset.fingerprint,
    )


def _check_deltas(dataset: LeRobotDataset, pipeline: Pipeline) -> None:
    state, action = dataset.state_feature, dataset.action_feature
    for transform in getattr(pipeline, "transforms", ()):
        if isinstance(transform, DeltaActions) and state.names and action.names:
            source = f"names of '{state.key}' and '{action.key}' in {dataset.root}"
            check_delta_places(transform.mask, state.names, action.names, source)


def split_into_blocks(dataset: LeRobotDataset) -> list[Block]:
    """Return parts of the episodes, in order, small enough for their chunks to be held at once."""
    size = max(1, _BLOCK // (dataset.action_horizon * max(dataset.action_dim, 1)))
    return [
        (first, min(first + size, span.stop), span.start, span.stop)
        for span in dataset.episode_slices
        for first in range(span.start, span.stop, size)
    ]


def block_values(
    dataset: LeRobotDataset, pipeline: Pipeline, block: Block
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return what is counted of one block, by feature: float32 values `[n, m]` and their rows int64 `[n]`."""
    first, last, start, stop = block
    rows, is_pad = windows(first, last, start, stop, dataset.window.actions)
    state = dataset.low_dim(dataset.state_key)[first:last]
    actions = dataset.low_dim(dataset.action_key)[rows]
    sample = pipeline.forward({"state": torch.from_numpy(state.copy()), "actions": torch.from_numpy(actions)})
    return {
        "state": (sample["state"].to(torch.float32).numpy(), np.arange(first, last)),
        "actions": (sample["actions"].to(torch.float32).numpy()[~is_pad], rows[~is_pad]),
    }


def _horizon(dataset: LeRobotDataset) -> str:
    """Return how long chunks are, and where they begin if that is not the present frame."""
    start = dataset.window.action_start
    return f"{dataset.action_horizon}{f' from step {start:+d}' if start else ''}"


def _worthwhile_threads(dataset: LeRobotDataset) -> int:
    values = len(dataset) * dataset.action_horizon * max(dataset.action_dim, 1)
    if values < _BLOCK:
        return 1
    return min(cores(), _MOST_THREADS)


def _shares(blocks: list[Block], threads: int) -> list[list[Block]]:
    """Cut the blocks into one run of neighbours for each thread, none of them empty."""
    threads = min(threads, len(blocks))
    edges = [len(blocks) * number // threads for number in range(threads + 1)]
    return [blocks[start:stop] for start, stop in pairwise(edges)]


class _Ticks:
    """Counts finished blocks of all threads and reports each count once."""

    def __init__(self, total: int, progress: ProgressCallback | None) -> None:
        self._done, self._total, self._progress, self._lock = 0, total, progress, Lock()

    def __call__(self) -> None:
        with self._lock:
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)


def _check_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        dimension = int(np.argwhere(~np.isfinite(values))[0][1])
        raise DatasetError(f"Dimension {dimension} of {name} is not finite after the transforms.")


@dataclass(frozen=True)
class _Rank:
    """A wanted order statistic: the bin of its upper half, and its rank within that bin."""

    bin: int
    within: int


class _Feature:
    """Accumulates one feature's values `[n, m]` over two passes."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.totals: list[np.ndarray] = []  # one of each block, so that they can be added in order
        self.squares: list[np.ndarray] = []
        self.low = np.full(width, np.inf)
        self.high = np.full(width, -np.inf)
        self.upper = np.zeros((width, _BINS), dtype=np.int64)

    def first(self, values: np.ndarray) -> None:
        """Count, sum and range, and how often each upper half occurs."""
        self.count += len(values)
        self.totals.append(values.sum(0, dtype=np.float64))
        self.low = np.minimum(self.low, values.min(0))
        self.high = np.maximum(self.high, values.max(0))
        keys = _sortable(values)
        for dimension in range(values.shape[1]):
            self.upper[dimension] += np.bincount(keys[:, dimension] >> 16, minlength=_BINS)

    def add_first(self, later: "_Feature") -> None:
        """Add what another one counted in the first pass, of the blocks that come after this one's."""
        self.count += later.count
        self.totals += later.totals
        self.low = np.minimum(self.low, later.low)
        self.high = np.maximum(self.high, later.high)
        self.upper += later.upper

    def begin_second(self) -> None:
        """Locate the bins that hold the wanted ranks."""
        self.mean = _sum_in_order(self.totals) / self.count
        wanted = sorted({rank for q in _QUANTILES for rank in _neighbours(q, self.count)[:2]})
        self.ranks: list[dict[int, _Rank]] = []
        self.lower: list[dict[int, np.ndarray]] = []
        for counts in self.upper:
            cumulative = counts.cumsum()
            ranks = {}
            for rank in wanted:
                place = int(np.searchsorted(cumulative, rank, side="right"))
                ranks[rank] = _Rank(place, rank - int(cumulative[place] - counts[place]))
            self.ranks.append(ranks)
            self.lower.append({r.bin: np.zeros(_BINS, dtype=np.int64) for r in ranks.values()})

    def for_second(self) -> "_Feature":
        """Return one that counts a share of the second pass, for `add_second`."""
        share = copy(self)
        share.squares = []
        share.lower = [{place: np.zeros_like(n) for place, n in bins.items()} for bins in self.lower]
        return share

    def add_second(self, later: "_Feature") -> None:
        """Add what another one counted in the second pass, of the blocks that come next."""
        self.squares += later.squares
        for bins, more in zip(self.lower, later.lower, strict=True):
            for place, counts in bins.items():
                counts += more[place]

    def second(self, values: np.ndarray) -> None:
        """Squared distances from the mean, and the lower halves within the located bins."""
        self.squares.append(((values - self.mean) ** 2).sum(0))
        keys = _sortable(values)
        for dimension, bins in enumerate(self.lower):
            column = keys[:, dimension]
            upper = column >> 16
            for place, counts in bins.items():
                counts += np.bincount(column[upper == place] & 0xFFFF, minlength=_BINS)

    def result(self) -> FeatureStats:
        """Return the statistics, once both passes are done."""
        quantiles = [[self._quantile(d, q) for d in range(len(self.mean))] for q in _QUANTILES]
        return FeatureStats(
            mean=tuple(self.mean.tolist()),
            std=tuple(np.sqrt(_sum_in_order(self.squares) / self.count).tolist()),
            min=tuple(self.low.tolist()),
            max=tuple(self.high.tolist()),
            q01=tuple(quantiles[0]),
            q99=tuple(quantiles[1]),
            count=self.count,
        )

    def _quantile(self, dimension: int, q: float) -> float:
        below, above, weight = _neighbours(q, self.count)
        low, high = self._order_statistic(dimension, below), self._order_statistic(dimension, above)
        # numpy interpolates from the nearer end; doing the same gives the same last bit.
        return high - (high - low) * (1 - weight) if weight >= 0.5 else low + (high - low) * weight

    def _order_statistic(self, dimension: int, rank: int) -> float:
        place = self.ranks[dimension][rank]
        counts = self.lower[dimension][place.bin]
        lower = int(np.searchsorted(counts.cumsum(), place.within, side="right"))
        return _from_sortable(place.bin << 16 | lower)


def _sum_in_order(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Add arrays one after the other; `np.sum` may pair them, which rounds otherwise."""
    total = np.zeros_like(parts[0])
    for part in parts:
        total += part
    return total


def _neighbours(q: float, count: int) -> tuple[int, int, float]:
    """Ranks around quantile q of `count` values, and the weight of the upper one."""
    place = q * (count - 1)
    below = int(np.floor(place))
    return below, min(below + 1, count - 1), place - below


def _sortable(values: np.ndarray) -> np.ndarray:
    """Map float32 to uint32 that sort alike: flip all bits of negatives, the sign bit of the others."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _from_sortable(key: int) -> float:
    bits = key ^ (1 << 31) if key >> 31 else key ^ 0xFFFFFFFF
    return float(np.array([bits], dtype=np.uint32).view(np.float32)[0])
