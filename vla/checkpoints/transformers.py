"""The statistics that `transformers`' `PI0Processor` keeps in `processor_config.json`, read and written.

They are means and standard deviations of `state` and `actions`, and its formula is the z-score with an
epsilon of 1e-8. It normalises inputs and leaves it to the caller to denormalise actions. The rest of its
pipeline is fixed; it differs from ours in the position of the black bars of an image that is not square.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla.atomic import atomic_write
from vla.checkpoints.module import PolicyConfig
from vla.errors import StatisticsError
from vla.transforms.base import Pipeline
from vla.transforms.normalize import TRANSFORMERS_FORMULA, Normalize
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.statistics import FeatureStats, Statistics

logger = logging.getLogger(__name__)

PROCESSOR_CONFIG = "processor_config.json"

_FEATURES = ("state", "actions")
_VECTORS = ("mean", "std")


def read_processor(folder: Path) -> Statistics | None:
    """Return the statistics in a folder's `processor_config.json`; None where it has none.

    Raises:
        StatisticsError: The file is not JSON, or holds only some of the statistics, or impossible ones.
    """
    path = folder / PROCESSOR_CONFIG
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        given = {
            f"{name}_{vector}": values.get(f"{name}_{vector}") for name in _FEATURES for vector in _VECTORS
        }
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise StatisticsError(f"{path} is not the config of a processor: {error}.") from error
    missing = [key for key, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise StatisticsError(f"{path} holds no {' and no '.join(missing)}, but other statistics.")
    features = {}
    for name in _FEATURES:
        try:
            mean, std = (tuple(map(float, given[f"{name}_{vector}"])) for vector in _VECTORS)
            features[name] = FeatureStats(mean=mean, std=std)
        except (TypeError, ValueError) as error:  # a StatisticsError is a ValueError
            raise StatisticsError(f"{path}, {name}: {error}") from error
    return Statistics(features, convention=f"transformers' {PROCESSOR_CONFIG}")


def read_transformers(
    statistics: Statistics, config: PolicyConfig, make_pipeline: Callable[..., Pipeline], tokenizer: Any
) -> Pipeline:
    """Return the pipeline of a processor's statistics: z-scores, no delta, instructions as they are."""
    pipeline = make_pipeline(
        config,
        statistics=statistics,
        tokenizer=tokenizer,
        state_dim=statistics.features["state"].width,
        action_dim=statistics.features["actions"].width,
        normalization="zscore",
        formula=TRANSFORMERS_FORMULA,
        augment=False,
        text=False,
    )
    return Pipeline(
        [
            replace(step, verbatim=True) if type(step) is TokenizePrompt else step
            for step in pipeline.transforms
        ]
    )


def processor_features(normalize: Normalize) -> dict[str, FeatureStats] | None:
    """Return the content of `processor_config.json` for a normalisation; None where that is not a z-score.

    Dimensions that our formula guards get values with which the plain formula does the same, see
    `Normalize.without_guard`.
    """
    if set(normalize.modes.values()) != {"zscore"}:
        return None
    statistics, _ = normalize.without_guard()
    return {
        name: FeatureStats(statistics.features[name].mean, statistics.features[name].std)
        for name in _FEATURES
    }


def write_transformers(pipeline: Pipeline, folder: Path, config: PolicyConfig) -> None:
    """Write `processor_config.json` into an existing folder.

    Args:
        pipeline: A pipeline with statistics.
        folder: Folder of the checkpoint.
        config: The policy's config.
    """
    side, normalize = config.image_size, pipeline.find(Normalize)
    features = processor_features(normalize)
    if features is None:
        logger.warning(
            "transformers' processor only knows z-score normalisation, so it gets no statistics of "
            "this policy (%s): bring states and actions to its scale with pipeline.json.",
            ", ".join(f"{name} by {mode}" for name, mode in normalize.modes.items()),
        )
    statistics = {
        f"{name}_{vector}": None if features is None else list(getattr(features[name], vector))
        for name in _FEATURES
        for vector in _VECTORS
    }
    content = {
        "processor_class": "PI0Processor",
        "image_processor": {
            "image_processor_type": "PI0ImageProcessor",
            "image_seq_length": config.tokens_per_image,
            "size": {"max_height": side, "max_width": side},
            "pad_size": {"height": side, "width": side},
            "resample": 2,  # bilinear, as the published weights were trained
        },
        **statistics,
        "max_state_dim": config.max_state_dim,
        "chunk_size": config.action_horizon,
    }
    atomic_write(folder / PROCESSOR_CONFIG, json.dumps(content, indent=2) + "\n")
