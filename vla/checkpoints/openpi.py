"""openpi's statistics, `norm_stats.json`, read and written.

openpi records mean, standard deviation and (not always) the 1 % and 99 % quantiles of `state` and `actions`,
and nothing else: cameras, delta masks and the robots' conventions are in its code. One file belongs to one
type of robot, named by its folder:

    <checkpoint>/assets/<asset id>/norm_stats.json      as released and as trained
    <checkpoint>/../assets/<asset id>/norm_stats.json   where openpi's converter to PyTorch looks for it
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vla.atomic import atomic_write
from vla.checkpoints.module import PolicyConfig
from vla.errors import StatisticsError, did_you_mean
from vla.paths import is_hidden
from vla.transforms.base import Pipeline
from vla.transforms.normalize import OPENPI_FORMULA, Normalize
from vla.transforms.statistics import FeatureStats, Statistics

logger = logging.getLogger(__name__)

ASSETS = "assets"
NORM_STATS = "norm_stats.json"
DEFAULT_ASSET = "vla"
"""Asset id of statistics that this project writes where none is given."""

_FEATURES = ("state", "actions")
_VECTORS = ("mean", "std", "q01", "q99")

# Quantiles of a dimension that is always zero, as openpi's histograms have them.
_ZERO = 1e-9


def find_assets(folder: Path) -> dict[str, Path]:
    """Return the statistics that belong to a checkpoint, by asset id; "" where they have none.

    The checkpoint's own take precedence; only without them, those of its parent folder count.
    """
    for base in (folder / ASSETS, folder.resolve().parent / ASSETS):
        # An asset id may be a hub id, with a slash.
        paths = [
            path
            for depth in ("", "*/", "*/*/")
            for path in sorted(base.glob(depth + NORM_STATS))
            if not is_hidden(path.parent)
        ]
        if paths:
            return {_asset_id(path, base): path for path in paths}
    return {}


def choose_asset(folder: Path, asset_id: str | None) -> Path | None:
    """Return the file with the statistics of one robot; None where a checkpoint has no statistics at all.

    Raises:
        StatisticsError: There are several and none was chosen, or the chosen one is not among them.
    """
    found = find_assets(folder)
    held = ", ".join(name or "(without a name)" for name in found)
    if asset_id is not None:
        if asset_id not in found:
            raise StatisticsError(
                f"{folder} has no statistics of '{asset_id}'; it has those of: {held or 'nothing'}."
                f"{did_you_mean(asset_id, found)}"
            )
        return found[asset_id]
    if len(found) > 1:
        raise StatisticsError(
            f"{folder} has the statistics of several robots: {held}. Choose yours with asset_id=."
        )
    return next(iter(found.values()), None)


def read_norm_stats(path: Path) -> Statistics:
    """Read one `norm_stats.json`, with or without a top-level "norm_stats".

    Raises:
        StatisticsError: It is not JSON, lacks the state or the actions, or holds impossible numbers.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values = values.get("norm_stats", values)
        given = {name: values[name] for name in _FEATURES}
        vectors = {
            name: {
                vector: _numbers(feature[vector]) for vector in _VECTORS if feature.get(vector) is not None
            }
            for name, feature in given.items()
        }
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError, ValueError) as error:
        raise StatisticsError(f"{path} does not hold openpi's statistics: {error}.") from error
    except KeyError as error:
        raise StatisticsError(f"{path} holds no statistics of {error}.") from error
    features = {}
    for name, feature in vectors.items():
        try:
            features[name] = FeatureStats(**feature)  # pyright: ignore[reportArgumentType] (only vectors)
        except StatisticsError as error:
            raise StatisticsError(f"{path}, {name}: {error}") from error
    return Statistics(features, convention="openpi's norm_stats.json")


def without_padding(feature: FeatureStats, padded_width: int) -> FeatureStats:
    """Return the statistics of the robot's own dimensions, where the padding is certain.

    openpi may have computed them after padding to the model's width. Dimensions are taken to be padding if
    the statistics are exactly as wide as the model's vectors, and all values up to the end are what padding
    gives: mean 0, std 0 (zeros were counted) or 1 (filled in so as to change nothing), quantiles 0 and 0 or
    -1 and 1, as far as these vectors are there. Otherwise the width of the statistics is the robot's: also
    where all of them look like padding, and where a robot's last dimension never moved but the statistics are
    narrower than the model.

    Args:
        feature: Statistics.
        padded_width: Padded width of the model's vectors.
    """
    if feature.width != padded_width:
        return feature
    width = feature.width
    while width and _is_padding(feature, width - 1):
        width -= 1
    return feature.first(width) if width else feature


def read_openpi(
    path: Path, config: PolicyConfig, make_pipeline: Callable[..., Pipeline], tokenizer: Any
) -> Pipeline:
    """Return the pipeline for openpi's statistics: its formulas, the standard slots, no delta.

    Args:
        path: Path of the `norm_stats.json`.
        config: The policy's config.
        make_pipeline: The policy's function.
        tokenizer: The policy's tokenizer.

    Raises:
        StatisticsError: See `read_norm_stats`; or the policy normalises by quantiles and there are none.
    """
    statistics = read_norm_stats(path)
    padded = {"state": config.max_state_dim, "actions": config.max_action_dim}
    features = {name: without_padding(statistics.features[name], padded[name]) for name in _FEATURES}
    for name, feature in features.items():
        if feature.width > padded[name]:
            raise StatisticsError(
                f"{path} counts {feature.width} dimensions of {name}; the model has room for {padded[name]}."
            )
    try:
        return make_pipeline(
            config,
            statistics=Statistics(features, convention=statistics.convention),
            tokenizer=tokenizer,
            state_dim=features["state"].width,
            action_dim=features["actions"].width,
            formula=OPENPI_FORMULA,
            augment=False,
            text=False,
        )
    except StatisticsError as error:
        raise StatisticsError(f"{path}: {error}") from error


def openpi_features(normalize: Normalize) -> dict[str, FeatureStats]:
    """Return the content of `norm_stats.json` for a normalisation.

    Dimensions that our formula guards get values with which openpi's formula does the same, see
    `Normalize.without_guard`.

    Raises:
        StatisticsError: A feature lacks the mean or the standard deviation, which openpi always reads.
    """
    statistics, _ = normalize.without_guard()
    features = {}
    for name in _FEATURES:
        feature = statistics.features.get(name)
        if feature is None or not {"mean", "std"} <= set(feature.held):
            raise StatisticsError(
                f"openpi's {NORM_STATS} needs mean and std of '{name}', which are not known."
            )
        features[name] = FeatureStats(feature.mean, feature.std, q01=feature.q01, q99=feature.q99)
    return features


def write_openpi(
    pipeline: Pipeline, folder: Path, native: Mapping[str, str], asset_id: str | None = None
) -> None:
    """Write `assets/<asset id>/norm_stats.json` into an existing folder.

    Args:
        pipeline: A pipeline with statistics.
        folder: Folder of the checkpoint.
        native: openpi's normalisation of this policy, mode by feature.
        asset_id: Name of the robot; "vla" where not given.

    Raises:
        StatisticsError: See `openpi_features`.
    """
    normalize: Normalize = pipeline.find(Normalize)
    content = {
        name: {vector: list(getattr(feature, vector)) for vector in feature.held}
        for name, feature in openpi_features(normalize).items()
    }
    if dict(normalize.modes) != dict(native):
        logger.warning(
            "openpi normalises this policy with %s and would act wrongly with one that was trained with %s.",
            *(
                ", ".join(f"{name} by {mode}" for name, mode in one.items())
                for one in (native, normalize.modes)
            ),
        )
    target = folder / ASSETS / (asset_id or DEFAULT_ASSET) / NORM_STATS
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, json.dumps({"norm_stats": content}, indent=2) + "\n")


def _asset_id(path: Path, base: Path) -> str:
    name = path.parent.relative_to(base).as_posix()
    return "" if name == "." else name


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list of numbers, got {type(values).__name__}")
    return tuple(float(value) for value in values)


def _is_padding(feature: FeatureStats, index: int) -> bool:
    at = {vector: getattr(feature, vector)[index] for vector in feature.held}
    quantiles = (at.get("q01", 0.0), at.get("q99", 0.0))
    return (
        at.get("mean", 0.0) == 0
        and at.get("std", 0.0) in (0.0, 1.0)
        and (max(map(abs, quantiles)) <= _ZERO or quantiles == (-1.0, 1.0))
    )
