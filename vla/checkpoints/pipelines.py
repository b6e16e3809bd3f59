"""Statistics, tokenizer and pipeline of a checkpoint, whatever its format.

| format | what records it | what it does not record |
|---|---|---|
| `vla` | `pipeline.json`, `statistics.json`, tokenizer | |
| `lerobot` | `policy_{pre,post}processor.json` and the files that they name | the tokenizer (a hub id) |
| `openpi`, `openpi-jax` | `assets/<asset id>/norm_stats.json` | cameras, delta mask, tokenizer |
| `transformers` | `processor_config.json`, tokenizer | quantiles, cameras, delta mask |

Where a format cannot record everything, our files are written in addition, and read as long as they agree
with the format's own. Published weights keep their formulas (`NormalizationFormula`).

A policy whose published files record it in another way has a `read_pipeline` in its `weights.py`, with the
arguments of the one below but `policy_name`; it is then called for every format but `vla`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla.checkpoints.lerobot.read import lerobot_tokenizer_name, read_lerobot
from vla.checkpoints.lerobot.write import write_lerobot
from vla.checkpoints.module import PolicyConfig
from vla.checkpoints.openpi import (
    choose_asset,
    find_assets,
    openpi_features,
    read_norm_stats,
    read_openpi,
    write_openpi,
)
from vla.checkpoints.transformers import (
    PROCESSOR_CONFIG,
    processor_features,
    read_processor,
    read_transformers,
    write_transformers,
)
from vla.errors import ConfigError, StatisticsError, did_you_mean
from vla.policies.registry import name_of, policy_entry, policy_module
from vla.transforms.base import PIPELINE_FILE, Pipeline
from vla.transforms.normalize import Normalize
from vla.transforms.statistics import STATISTICS_FILE
from vla.transforms.tokenizer import LazyTokenizer, find_tokenizer, holds_tokenizer

FORMATS = ("vla", "lerobot", "transformers", "openpi", "openpi-jax")


def read_pipeline(
    folder: Path,
    format_name: str,
    policy_name: str,
    config: PolicyConfig,
    *,
    stored_config: dict[str, Any],
    tokenizer: Any = None,
    asset_id: str | None = None,
) -> Pipeline | None:
    """Return the pipeline of a checkpoint, or None where it has no statistics and therefore cannot act.

    No tokenizer is fetched: one that is only named by the checkpoint is opened at first use.

    Args:
        folder: The checkpoint's folder.
        format_name: One of `FORMATS`.
        policy_name: "pi0".
        config: The policy's config. Only LeRobot's processors record whether pi-0.5 reads the state: where
            present, they set `config.discrete_state`.
        stored_config: The checkpoint's `config.json`.
        tokenizer: A tokenizer, its folder or its hub id, where the checkpoint's folder holds none.
        asset_id: Which robot's statistics to take of an openpi checkpoint that has several.

    Raises:
        StatisticsError: The statistics are damaged, lack what the policy needs, or are of several robots.
        WeightsError: LeRobot's files are damaged or do something that has no counterpart here.
        ConfigError: The folder's or the given tokenizer cannot be read, or a file of ours is damaged.
    """
    read_its_own = getattr(policy_module(policy_name, "weights"), "read_pipeline", None)
    if format_name == "vla" or read_its_own is None:
        check_asset(folder, format_name, asset_id)
    if format_name == "vla":
        return _own(folder, tokenizer)
    if read_its_own is not None:
        return read_its_own(
            folder, format_name, config, stored_config=stored_config, tokenizer=tokenizer, asset_id=asset_id
        )
    make_pipeline = policy_entry(policy_name).make_pipeline
    if format_name == "lerobot":
        return read_lerobot(folder, config, stored_config, make_pipeline, tokenizer)
    if format_name == "transformers":
        return _transformers(folder, config, make_pipeline, tokenizer)
    if format_name in ("openpi", "openpi-jax"):
        return _openpi(folder, config, make_pipeline, tokenizer, asset_id)
    raise _unknown(format_name)


def check_asset(folder: Path, format_name: str, asset_id: str | None) -> None:
    """Raise where the statistics of one of several robots are asked for, and the format has one robot's.

    Raises:
        StatisticsError: See above.
    """
    if asset_id is not None and not format_name.startswith("openpi"):
        raise StatisticsError(
            f"{folder} has no statistics of '{asset_id}': a checkpoint of the format '{format_name}' names "
            "none, so leave out asset_id (`--asset-id`). A robot of several is chosen by pipeline=."
        )


def read_tokenizer(
    folder: Path, format_name: str, *, stored_config: dict[str, Any], tokenizer: Any = None
) -> Any:
    """Return the tokenizer of a checkpoint that has no statistics, for fine-tuning; None where it names none.

    Args:
        folder: The checkpoint's folder.
        format_name: One of `FORMATS`.
        stored_config: The checkpoint's `config.json`.
        tokenizer: See `read_pipeline`.

    Raises:
        WeightsError: LeRobot's files are damaged.
        ConfigError: The tokenizer in the folder or the given one cannot be read.
    """
    if format_name == "vla":
        if tokenizer is None and not holds_tokenizer(folder):
            return None
        return find_tokenizer(folder, tokenizer)
    if format_name == "lerobot":
        return find_tokenizer(folder, tokenizer, lerobot_tokenizer_name(folder, stored_config))
    return find_tokenizer(folder, tokenizer)


def write_pipeline(
    pipeline: Pipeline,
    folder: Path,
    format_name: str,
    config: PolicyConfig,
    *,
    asset_id: str | None = None,
) -> None:
    """Write a policy's pipeline into an existing folder, in the files of a format.

    A tokenizer that was not fetched yet is not fetched for this: its name is recorded, where the format or
    our own files next to it can.

    Args:
        pipeline: A pipeline with statistics.
        folder: The folder that holds the weights and `config.json`.
        format_name: One of `FORMATS`.
        config: The policy's config.
        asset_id: openpi: the name of the robot; "vla" where not given.

    Raises:
        ConfigError: The format cannot express what the pipeline does, or cannot be written.
        StatisticsError: The format needs statistics that are not known.
    """
    if format_name == "lerobot":
        write_lerobot(pipeline, folder, config)
        return
    if format_name == "transformers":
        write_transformers(pipeline, folder, config)
    elif format_name in ("openpi", "openpi-jax"):
        native = policy_entry(name_of(config)).policy.normalization
        write_openpi(pipeline, folder, native, asset_id)
    elif format_name != "vla":
        raise _unknown(format_name)
    pipeline.save(folder)


def _own(folder: Path, tokenizer: Any) -> Pipeline | None:
    """Return the pipeline in our own files, if there are any; in any format's folder both or none of them."""
    if not (folder / PIPELINE_FILE).exists():
        if (folder / STATISTICS_FILE).exists():
            raise ConfigError(f"{folder / PIPELINE_FILE} is missing, to which {STATISTICS_FILE} belongs.")
        return None
    pipeline = Pipeline.load(folder)
    if tokenizer is None or not isinstance(pipeline.tokenizer, LazyTokenizer):
        return pipeline
    return pipeline.with_tokenizer(find_tokenizer(folder, tokenizer))


def _transformers(
    folder: Path, config: PolicyConfig, make_pipeline: Callable[..., Pipeline], tokenizer: Any
) -> Pipeline | None:
    theirs, own = read_processor(folder), _own(folder, tokenizer)
    if own is not None:
        if theirs is not None and theirs.features != processor_features(own.find(Normalize)):
            raise _disagreement(folder / PROCESSOR_CONFIG)
        return own
    if theirs is None:
        return None
    return read_transformers(theirs, config, make_pipeline, find_tokenizer(folder, tokenizer))


def _openpi(
    folder: Path,
    config: PolicyConfig,
    make_pipeline: Callable[..., Pipeline],
    tokenizer: Any,
    asset_id: str | None,
) -> Pipeline | None:
    own = _own(folder, tokenizer)
    if own is not None:
        said = openpi_features(own.find(Normalize))
        assets = find_assets(folder) if asset_id is None else {asset_id: choose_asset(folder, asset_id)}
        if not assets or any(read_norm_stats(path).features == said for path in assets.values() if path):
            return own
        if asset_id is None:
            raise _disagreement(*(path for path in assets.values() if path))
        # The statistics of a robot other than that of our files were asked for.
    path = choose_asset(folder, asset_id)
    if path is None:
        return None
    return read_openpi(path, config, make_pipeline, find_tokenizer(folder, tokenizer))


def _disagreement(*paths: Path) -> StatisticsError:
    return StatisticsError(
        f"{' and '.join(map(str, paths))} and {PIPELINE_FILE} hold different statistics, so one of them "
        f"was changed. Remove {PIPELINE_FILE} and {STATISTICS_FILE} to use the other."
    )


def _unknown(format_name: str) -> ConfigError:
    hint = did_you_mean(format_name, FORMATS)
    return ConfigError(f"Unknown format '{format_name}'; known are {', '.join(FORMATS)}.{hint}")
