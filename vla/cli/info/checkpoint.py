"""`vla info CHECKPOINT`: format, policy, sizes, parameters by part, pipeline: from headers alone."""

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from vla.atomic import read_json
from vla.checkpoints.empty import empty_policy, parameter_shapes
from vla.checkpoints.hub.card import license_of
from vla.checkpoints.hub.push import CARD_FILE
from vla.checkpoints.pipelines import read_pipeline
from vla.checkpoints.recognise import is_paligemma, recognise, weights_module
from vla.cli.console import console, print_rows
from vla.cli.info.memory import MemoryOptions, memory_rows, memory_table
from vla.cli.info.pipeline import describe, read_robots, read_statistics, read_steps
from vla.cli.info.text import CheckpointInfo, in_words
from vla.cli.logs import print_json
from vla.errors import ConfigError, StatisticsError, WeightsError
from vla.policies.flow.initialise import PALIGEMMA
from vla.policies.registry import policy_entry
from vla.transforms.base import PIPELINE_FILE
from vla.weights.formats import Format, Stored, open_stored
from vla.weights.headers import HeadersAlone
from vla.weights.plan import plan_load
from vla.weights.run_folder import has_weights
from vla.weights.tensors import TensorInfo

_FILE_FIELDS = (
    "action_horizon", "max_action_dim", "max_state_dim", "max_prompt_length", "image_size",
    "num_inference_steps", "max_action_prefix", "numerics", "discrete_state",
)  # fmt: skip
"""Shown of a `config.json` that no policy here reads, where it has them."""


def print_checkpoint(
    what: str,
    folder: Path,
    *,
    memory: MemoryOptions | None = None,
    asset_id: str | None = None,
    as_json: bool = False,
) -> None:
    """Describe a checkpoint.

    Args:
        what: What the user calls it.
        folder: Where it lies, or its headers.
        memory: What to predict the memory for; None leaves it out.
        asset_id: Whose statistics to describe where there are those of several robots.
        as_json: Print JSON instead of tables.

    Raises:
        WeightsError: It is damaged, or what it holds is refused by name.
        ConfigError: Its config or pipeline is damaged, or the memory of what would not load is asked for.
    """
    found = inspect(folder, asset_id)
    rows = None if memory is None else memory_rows(found.config, found.problem, memory)
    if as_json:
        extra = {} if memory is None else {"memory": rows}
        print_json({"kind": "checkpoint", "path": what, **found.to_json(), **extra})
        return
    print_rows(f"checkpoint {what}", in_words(found))
    if rows is not None and memory is not None:
        console().print(memory_table(rows, memory))


def inspect(folder: Path, asset_id: str | None = None) -> CheckpointInfo:
    """Look at a folder's headers and small files; see `print_checkpoint` for what it raises."""
    found = CheckpointInfo()
    readme = folder / CARD_FILE
    if readme.is_file():
        found.license = license_of(readme.read_text(encoding="utf-8", errors="replace"))
    if not has_weights(folder) and (folder / "config.json").is_file():
        found.problem = "There are no weights in it."
        _take_config(found, read_json(folder / "config.json", ConfigError))
        read_our_pipeline(found, folder)
        return found
    with open_stored(folder) as stored:
        found.tensors = len(stored.reader.infos)
        sizes = {name: prod(info.shape) for name, info in stored.reader.infos.items()}
        found.parameters = sum(sizes.values())
        found.dtypes = _by_dtype(stored.reader.infos)
        places = {place for name in stored.reader.infos for place in stored.reader.files_of(name)}
        files = {file for place in places for file in _files(place)}
        found.files, found.bytes = len(files), sum(file.stat().st_size for file in files)
        _take_config(found, stored.config)
        try:
            policy, format = recognise(stored)
            found.policy, found.format = policy, format.name
            found.config = weights_module(policy).read_config(stored, format)
        except (ConfigError, WeightsError) as error:
            found.problem = str(error)
            if found.format is None and is_paligemma(list(stored.reader.infos)):
                found.format = PALIGEMMA.name
            read_our_pipeline(found, folder)
            return found
        _take_policy(found, stored, format, sizes)
        if format.name == "vla":
            read_our_pipeline(found, folder)
        else:
            _read_their_pipeline(found, stored, policy, format, asset_id)
    return found


def meta_shapes(policy: str, config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of a policy, without memory for any."""
    return parameter_shapes(empty_policy(policy_entry(policy).policy, config))


def _take_config(found: CheckpointInfo, values: Mapping[str, Any]) -> None:
    """Take what any library's `config.json` records."""
    found.policy = str(values.get("model_type") or values.get("type") or "unknown")
    found.dimensions = {name: values[name] for name in _FILE_FIELDS if name in values}
    cameras = values.get("cameras")
    found.cameras = list(map(str, cameras)) if isinstance(cameras, list) else []


def _take_policy(found: CheckpointInfo, stored: Stored, format: Format, sizes: Mapping[str, int]) -> None:
    """Take what the policy's config says, and count parameters by part."""
    config = found.config
    found.dimensions = config.dimensions()
    found.cameras = list(config.cameras)
    wanted = meta_shapes(found.policy, config)
    headers = Stored(stored.folder, HeadersAlone(stored.reader), stored.config)
    try:
        plan = plan_load(format, headers, wanted)
    except WeightsError as error:
        found.problem = str(error)
        return
    parts: Counter[str] = Counter()
    table = policy_entry(found.policy).policy.parts
    for name, piece in plan.pieces.items():
        parts[table.of(name).title] += prod(piece.shape)
    found.parts = {part.title: parts[part.title] for part in table.parts}
    found.unused = {name: sizes[name] for name in plan.dropped}
    found.notes = list(plan.notes)


def _by_dtype(infos: Mapping[str, TensorInfo]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for info in infos.values():
        counts[str(info.dtype).removeprefix("torch.")] += prod(info.shape)
    return dict(counts.most_common())


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]


def read_our_pipeline(found: CheckpointInfo, folder: Path) -> None:
    """Take what the pipelines in a folder of ours say."""
    if (folder / PIPELINE_FILE).is_file():
        found.pipeline = [str(step.get("type")) for step in read_steps(folder)]
    found.statistics = read_statistics(folder)
    found.robots = read_robots(folder)


def _read_their_pipeline(
    found: CheckpointInfo, stored: Stored, policy: str, format: Format, asset_id: str | None
) -> None:
    try:
        pipeline = read_pipeline(
            stored.folder,
            format.name,
            policy,
            found.config,
            stored_config=stored.config,
            asset_id=asset_id,
        )
    except (ConfigError, StatisticsError, WeightsError) as error:
        found.pipeline_problem = str(error)
        return
    if pipeline is None:
        return
    found.pipeline = [transform.name for transform in pipeline.transforms]
    held = (getattr(transform, "statistics", None) for transform in pipeline.transforms)
    statistics = next((one for one in held if one is not None), None)
    found.statistics = None if statistics is None else describe(statistics)
