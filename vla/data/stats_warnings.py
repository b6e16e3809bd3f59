"""Warnings about a dataset's statistics, per dimension and in words, to be read before training.

| warning | when |
|---|---|
| constant | the range is at most 2.5e-7 of its larger end: only float32 noise |
| frozen gripper | its name holds "gripper", and the range is at most 1 % of its larger end |
| q01 = q99 | the two quantiles differ by at most 2.5e-7 of the larger, but the extremes by more |
| outliers | values further than 10 standard deviations from the mean |

The first three follow from the statistics alone, and so does whether there are outliers: only where an
extreme is that far out are the data read again, to count the outliers and to find the worst.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vla.data.dataset import LeRobotDataset
from vla.data.stats import block_values, split_into_blocks
from vla.transforms.base import Pipeline
from vla.transforms.normalize import CONSTANT_SPREAD, FeatureStats, Statistics

OUTLIER_SIGMAS = 10.0
"""An outlier is further from the mean than this many standard deviations."""

GRIPPER_SPREAD = 0.01
"""A gripper moves if its range is more than this share of its larger end, in whatever unit."""

Kind = Literal["constant", "frozen gripper", "q01 = q99", "outliers"]


@dataclass(frozen=True)
class StatisticsWarning:
    """One warning about one dimension.

    Attributes:
        feature: "state" or "actions".
        dimension: Its number.
        kind: Which warning.
        message: A sentence that names the dimension.
    """

    feature: str
    dimension: int
    kind: Kind
    message: str


@dataclass(frozen=True)
class Outliers:
    """The outliers of one dimension.

    Attributes:
        count: How many of the values that were counted; a frame that is in several chunks counts in each.
        worst: The value that is furthest out.
        sigmas: How many standard deviations.
        episode: Episode of the worst, its number in the dataset.
        frame: Its frame in the episode.
    """

    count: int
    worst: float
    sigmas: float
    episode: int
    frame: int


def warn_of_statistics(
    statistics: Statistics,
    dataset: LeRobotDataset,
    pipeline_before_normalize: Pipeline | None = None,
    names: Mapping[str, Sequence[str] | None] | None = None,
) -> list[StatisticsWarning]:
    """Return the warnings about a dataset's statistics; see the module for the thresholds.

    Args:
        statistics: From `compute_statistics(dataset, pipeline_before_normalize)`.
        dataset: Their dataset; its videos are not opened.
        pipeline_before_normalize: The transforms that were given there.
        names: The names of the dimensions by feature; None: the dataset's.
    """
    if names is None:
        names = {"state": dataset.state_feature.names, "actions": dataset.action_feature.names}
    outliers = find_outliers(statistics, dataset, pipeline_before_normalize)
    warnings = []
    for feature, values in statistics.features.items():
        found = oddities(feature, values, names.get(feature))
        far = [
            _outlier_warning(feature, dimension, names.get(feature), outlier)
            for (of, dimension), outlier in outliers.items()
            if of == feature
        ]
        warnings += sorted([*found, *far], key=lambda warning: warning.dimension)
    return warnings


def oddities(
    feature: str, values: FeatureStats, names: Sequence[str] | None = None
) -> list[StatisticsWarning]:
    """Return the warnings that follow from the statistics alone: at most one per dimension."""
    found = []
    for dimension, (low, high, q01, q99) in enumerate(
        zip(values.min, values.max, values.q01, values.q99, strict=True)
    ):
        label = _label(feature, dimension, names)
        larger = max(abs(low), abs(high))
        kind: Kind | None = None
        if "gripper" in label.lower() and high - low <= GRIPPER_SPREAD * larger:
            kind, says = "frozen gripper", f"never moves: it stays between {low:.6g} and {high:.6g}"
        elif high - low <= CONSTANT_SPREAD * larger:
            kind, says = "constant", f"is constant at {high:.6g}: it teaches nothing and is normalised to 0"
        elif q99 - q01 <= CONSTANT_SPREAD * max(abs(q01), abs(q99)):
            kind = "q01 = q99"
            says = (
                f"has q01 = q99 = {q99:.6g}, but reaches from {low:.6g} to {high:.6g}: it moves in fewer "
                "than 1 % of the values, so quantile normalisation scales it by its extremes"
            )
        if kind is not None:
            found.append(StatisticsWarning(feature, dimension, kind, f"{label} {says}."))
    return found


def find_outliers(
    statistics: Statistics, dataset: LeRobotDataset, pipeline_before_normalize: Pipeline | None = None
) -> dict[tuple[str, int], Outliers]:
    """Return the outliers by feature and dimension; reads the data only if there are any.

    Args:
        statistics: From `compute_statistics(dataset, pipeline_before_normalize)`.
        dataset: Their dataset.
        pipeline_before_normalize: The transforms that were given there.
    """
    reach = {feature: _may_have_outliers(values) for feature, values in statistics.features.items()}
    if not any(flags.any() for flags in reach.values()):
        return {}
    pipeline = pipeline_before_normalize or Pipeline(())
    counts: dict[tuple[str, int], int] = {}
    worst: dict[tuple[str, int], tuple[float, float, int]] = {}  # sigmas, value, row
    for block in split_into_blocks(dataset):
        for feature, (values, rows) in block_values(dataset, pipeline, block).items():
            for dimension in np.flatnonzero(reach[feature]).tolist():
                mean, std = (getattr(statistics.features[feature], n)[dimension] for n in ("mean", "std"))
                sigmas = np.abs(values[:, dimension] - mean) / std
                far = int((sigmas > OUTLIER_SIGMAS).sum())
                if not far:
                    continue
                at, key = int(sigmas.argmax()), (feature, dimension)
                counts[key] = counts.get(key, 0) + far
                here = (float(sigmas[at]), float(values[at, dimension]), int(rows[at]))
                worst[key] = max(worst.get(key, here), here, key=lambda found: found[0])
    return {
        key: Outliers(counts[key], value, sigmas, *_place(dataset, row))
        for key, (sigmas, value, row) in worst.items()
    }


def _may_have_outliers(values: FeatureStats) -> np.ndarray:
    """Return which dimensions `[m]` have an extreme beyond the limit; a constant has none."""
    low, high, mean, std = (np.asarray(getattr(values, name)) for name in ("min", "max", "mean", "std"))
    moves = high - low > CONSTANT_SPREAD * np.maximum(np.abs(low), np.abs(high))
    return moves & (np.maximum(high - mean, mean - low) > OUTLIER_SIGMAS * std)


def _outlier_warning(
    feature: str, dimension: int, names: Sequence[str] | None, found: Outliers
) -> StatisticsWarning:
    values = "1 value" if found.count == 1 else f"{found.count} values"
    message = (
        f"{_label(feature, dimension, names)} has {values} beyond {OUTLIER_SIGMAS:g} standard deviations; "
        f"the worst is {found.worst:.6g} ({found.sigmas:.1f} of them) in episode {found.episode}, frame "
        f"{found.frame}."
    )
    return StatisticsWarning(feature, dimension, "outliers", message)


def _label(feature: str, dimension: int, names: Sequence[str] | None) -> str:
    name = f" ({names[dimension]})" if names is not None and dimension < len(names) else ""
    return f"{feature} dimension {dimension}{name}"


def _place(dataset: LeRobotDataset, row: int) -> tuple[int, int]:
    """Return the episode's number and the frame in it."""
    for episode, span in zip(dataset.episodes, dataset.episode_slices, strict=True):
        if row < span.stop:
            return episode.index, row - span.start
    raise AssertionError(f"row {row} is outside the dataset")
