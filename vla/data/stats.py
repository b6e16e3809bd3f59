"""Normalisation statistics, exact and in bounded memory.

Counted is what the model sees: the state of every frame once, and every step of every chunk that lies
inside its episode, after the transforms that precede normalisation. With delta actions a step's value
depends on the frame its chunk starts from, so a frame of the dataset counts up to H times. That expanded
array is never held: two passes go over it in blocks.

Quantiles are order statistics found by their bits. A float32 is turned into a 32-bit number that sorts
the same way; the first pass counts how often each upper half occurs, which says in which of 65,536 bins
the wanted rank lies; the second counts the lower halves within those bins, which says the number itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vla.data.dataset import LeRobotDataset
from vla.data.windows import windows
from vla.errors import DatasetError
from vla.transforms.base import Pipeline
from vla.transforms.normalize import FeatureStats, Statistics

CONVENTION = (
    "state: every frame once; actions: every chunk step inside its episode, "
    "horizon {horizon}, {transforms}; population std; exact quantiles, linear between ranks"
)
_QUANTILES = (0.01, 0.99)
_BLOCK = 2_000_000  # values of the expanded actions in memory at once: 8 MB
_BINS = 1 << 16

Progress = Callable[[int, int], None]


def compute_statistics(
    dataset: LeRobotDataset,
    pipeline_before_normalize: Pipeline | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Compute mean, standard deviation, range and 1 % / 99 % quantiles of state and actions.

    Args:
        dataset: Its videos are not touched.
        pipeline_before_normalize: Transforms that change state and actions before they are normalised
            (delta actions); `pipeline.before(Normalize)`. They get `{"state": [n, m], "actions": [n, a, m]}`.
        progress: Called with (blocks done, blocks in all).

    Returns:
        Statistics of `"state"` and `"actions"`; quantiles as `np.quantile(..., method="linear")`.

    Raises:
        DatasetError: A transform turned a value into one that is not finite.
    """
    pipeline = pipeline_before_normalize or Pipeline(())
    blocks = _blocks(dataset)
    features: dict[str, _Feature] = {}
    done = 0

    def walk() -> Iterator[tuple[str, np.ndarray]]:
        nonlocal done
        for block in blocks:
            yield from _values(dataset, pipeline, *block).items()
            done += 1
            if progress is not None:
                progress(done, 2 * len(blocks))

    for name, values in walk():
        _check_finite(name, values)
        if name not in features:
            features[name] = _Feature(values.shape[1])
        features[name].first(values)
    for feature in features.values():
        feature.begin_second()
    for name, values in walk():
        features[name].second(values)
    names = ", ".join(transform.name for transform in pipeline.transforms)
    return Statistics(
        features={name: feature.result() for name, feature in features.items()},
        convention=CONVENTION.format(
            horizon=dataset.action_horizon, transforms=f"after {names}" if names else "as recorded"
        ),
        source=dataset.fingerprint,
    )


def _blocks(dataset: LeRobotDataset) -> list[tuple[int, int, int]]:
    """Return (first row, last row, episode's stop): parts of episodes, small enough to be expanded."""
    size = max(1, _BLOCK // (dataset.action_horizon * max(dataset.action_dim, 1)))
    return [
        (first, min(first + size, span.stop), span.stop)
        for span in dataset.episode_slices
        for first in range(span.start, span.stop, size)
    ]


def _values(
    dataset: LeRobotDataset, pipeline: Pipeline, first: int, last: int, stop: int
) -> dict[str, np.ndarray]:
    rows, is_pad = windows(first, last, stop, dataset.action_horizon)
    state = dataset.low_dim(dataset.state_key)[first:last]
    actions = dataset.low_dim(dataset.action_key)[rows]
    sample = pipeline.forward({"state": torch.from_numpy(state.copy()), "actions": torch.from_numpy(actions)})
    return {
        "state": sample["state"].to(torch.float32).numpy(),
        "actions": sample["actions"].to(torch.float32).numpy()[~is_pad],
    }


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
        self.total = np.zeros(width)
        self.squares = np.zeros(width)
        self.low = np.full(width, np.inf)
        self.high = np.full(width, -np.inf)
        self.upper = np.zeros((width, _BINS), dtype=np.int64)

    def first(self, values: np.ndarray) -> None:
        """Count, sum and range, and how often each upper half occurs."""
        self.count += len(values)
        self.total += values.sum(0, dtype=np.float64)
        self.low = np.minimum(self.low, values.min(0))
        self.high = np.maximum(self.high, values.max(0))
        keys = _sortable(values)
        for dimension in range(values.shape[1]):
            self.upper[dimension] += np.bincount(keys[:, dimension] >> 16, minlength=_BINS)

    def begin_second(self) -> None:
        """Locate the bins that hold the wanted ranks."""
        self.mean = self.total / self.count
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

    def second(self, values: np.ndarray) -> None:
        """Squared distances from the mean, and the lower halves within the located bins."""
        self.squares += ((values - self.mean) ** 2).sum(0)
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
            std=tuple(np.sqrt(self.squares / self.count).tolist()),
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
