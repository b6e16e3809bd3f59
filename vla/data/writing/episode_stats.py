"""The statistics that LeRobot stores in a dataset: per episode and overall.

They are written for other readers of the dataset; training uses `vla.data.stats`, which describe what the
model sees. Quantiles are exact here too (LeRobot merges per-episode histograms by an outer envelope).
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla.paths import is_hidden

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Summary = dict[str, list]

_MAX_FRAMES = 100
_MAX_SIDE = 150


def summarize(values: np.ndarray) -> Summary:
    """Summarise rows `[n]` or `[n, d]`: `{min, max, mean, std, count, q01, q10, q50, q90, q99}`."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return {
        "min": rows.min(0).tolist(),
        "max": rows.max(0).tolist(),
        "mean": rows.mean(0).tolist(),
        "std": rows.std(0).tolist(),
        "count": [len(rows)],
        **{name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)},
    }


def summarize_columns(
    data: Path, schema: pa.Schema, vectors: Collection[str], frames: int
) -> dict[str, Summary]:
    """Summarise every column of numbers over all frames, read back one by one, so that quantiles are exact.

    Args:
        data: The folder of the tables.
        schema: Theirs.
        vectors: Which columns hold vectors.
        frames: Rows of all tables together.
    """
    files = sorted(path for path in data.glob("*/*.parquet") if not is_hidden(path))
    found = {}
    for field in schema:
        if field.type == pa.string():
            continue
        parts = defaultdict(list)
        for file in files:
            column = pq.read_table(file, columns=[field.name])[field.name].combine_chunks()
            flat = column.flatten() if field.name in vectors else column
            parts[field.name].append(flat.to_numpy(zero_copy_only=False))
        found[field.name] = summarize(np.concatenate(parts[field.name]).reshape(frames, -1))
    return found


def merged(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> dict[str, Summary]:
    """Summarise columns over all frames by their episodes' summaries, without reading a frame again.

    Exact but for the quantiles, which are the mean of the episodes', weighted by their frames.

    Args:
        rows: The episodes': `length`, and `stats/<column>/<statistic>`.
        schema: That of the tables; texts are left out.
    """
    count = np.array([[row["length"]] for row in rows], dtype=np.float64)
    share = count / count.sum()
    found = {}
    for key in (field.name for field in schema if field.type != pa.string()):
        names = ("min", "max", "mean", "std", *QUANTILES)
        of = {name: np.array([row[f"stats/{key}/{name}"] for row in rows]) for name in names}
        mean = (share * of["mean"]).sum(0)
        variance = (share * (of["std"] ** 2 + (of["mean"] - mean) ** 2)).sum(0)
        found[key] = {
            "min": of["min"].min(0).tolist(),
            "max": of["max"].max(0).tolist(),
            "mean": mean.tolist(),
            "std": np.sqrt(variance).tolist(),
            "count": [int(count.sum())],
            **{name: (share * of[name]).sum(0).tolist() for name in QUANTILES},
        }
    return found


class PixelHistogram:
    """How often each of the 256 values occurs per channel: every statistic of uint8 pixels, exactly."""

    def __init__(self) -> None:
        self.counts = np.zeros((3, 256), dtype=np.int64)
        self.num_frames = 0

    def add_episode(self, frames: Sequence[np.ndarray]) -> None:
        """Count at most 100 evenly spaced frames `[h, w, 3]` uint8, thinned to about 150 pixels a side."""
        picked = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MAX_FRAMES)).round().astype(int))
        for position in picked:
            height, width, _ = frames[position].shape
            step = max(1, max(height, width) // _MAX_SIDE)
            thinned = frames[position][::step, ::step]
            for channel in range(3):
                self.counts[channel] += np.bincount(thinned[..., channel].ravel(), minlength=256)
        self.num_frames += len(picked)

    def merge(self, other: "PixelHistogram") -> None:
        """Add another histogram's counts to this one."""
        self.counts += other.counts
        self.num_frames += other.num_frames

    def summary(self) -> Summary:
        """Summarise as `summarize` does; values in [0, 1], each `[3, 1, 1]`; `count` is in frames."""
        values = np.arange(256) / 255
        total = self.counts.sum(1)
        mean = self.counts @ values / total
        variance = (self.counts * (values - mean[:, None]) ** 2).sum(1) / total
        cumulative = self.counts.cumsum(1)
        present = self.counts > 0
        rows = {
            "min": values[present.argmax(1)],
            "max": values[255 - present[:, ::-1].argmax(1)],
            "mean": mean,
            "std": np.sqrt(variance),
        }
        for name, q in QUANTILES.items():
            rank = q * (total - 1)
            low, high = (_values_at(cumulative, values, ranks) for ranks in (np.floor(rank), np.ceil(rank)))
            rows[name] = low + (high - low) * (rank - np.floor(rank))
        summary: Summary = {name: row.reshape(3, 1, 1).tolist() for name, row in rows.items()}
        return {**summary, "count": [self.num_frames]}


def _values_at(cumulative: np.ndarray, values: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    return np.array(
        [values[np.searchsorted(c, rank, side="right")] for c, rank in zip(cumulative, ranks, strict=True)]
    )
