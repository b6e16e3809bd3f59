"""Convert a checkpoint to another format, tensor by tensor, without holding a model in memory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vla.atomic import atomic_folder, atomic_write
from vla.checkpoints.agreement import check_pipelines
from vla.checkpoints.empty import empty_policy, parameter_shapes
from vla.checkpoints.pipelines import read_pipeline, write_pipeline
from vla.checkpoints.recognise import format_of, recognise, weights_module
from vla.checkpoints.replace import refuse_run
from vla.errors import ConfigError, VlaError
from vla.paths import expanded
from vla.policies.registry import policy_entry
from vla.transforms.named_pipelines import (
    PIPELINES_FOLDER,
    check_choice,
    pipeline_names,
    read_pipelines,
    write_pipelines,
)
from vla.transforms.tokenizer import load_tokenizer
from vla.types import ProgressCallback
from vla.weights.dtypes import as_dtype, main_dtype
from vla.weights.formats import VLA_CONFIG, Format, Stored, open_stored
from vla.weights.plan import plan_load, plan_write
from vla.weights.source import local_folder
from vla.weights.stream import Fill, write_tensors
from vla.weights.tensors import Piece

SINGLE_FILE_FORMATS = ("lerobot", "openpi")
"""The readers of these formats do not know shards."""

DEFAULT_SHARD_BYTES = 5 * 10**9

_CANNOT_ACT = "It carries no statistics: it can be fine-tuned, but cannot act."


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        policy: Name of the policy, "pi0".
        source_format: The format that was read.
        target_format: The format that was written.
        tensors: Number of tensors written.
        parameters: Values in them.
        total_bytes: Bytes of them.
        files: Paths of everything written, below the target folder.
        dropped: Stored name -> why it was left out.
        notes: Sentences for the user.
    """

    policy: str
    source_format: str
    target_format: str
    tensors: int
    parameters: int
    total_bytes: int
    files: tuple[str, ...]
    dropped: dict[str, str]
    notes: tuple[str, ...]


def convert(
    src: str | Path,
    dst: str | Path,
    to: str,
    *,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    max_shard_size: str | int | None = None,
    config: dict[str, Any] | None = None,
    tokenizer: Any = None,
    asset_id: str | None = None,
    pipeline: str | None = None,
    progress: ProgressCallback | None = None,
) -> ConversionReport:
    """Write a checkpoint in another format: weights, config, statistics and pipeline.

    Args:
        src: Folder or hub id, in any format that is known.
        dst: Folder to make; it must not exist, or be empty.
        to: "vla", "lerobot", "transformers" or "openpi".
        dtype: Dtype of the written weights; None keeps what is stored.
        revision: Branch, tag or commit on the hub.
        token: Hub token, for private and gated repositories.
        max_shard_size: Largest file ("5GB", or bytes), for formats that know shards: 5 GB where not given.
        config: Fields of the config that the source does not record, such as `{"action_horizon": 10}`.
        tokenizer: A tokenizer, or its folder or hub id, where the source has none.
        asset_id: Which statistics to take where the source holds those of several robots.
        pipeline: Which robot to write of a source that was trained on several: the name of its pipeline. To
            "vla", all of them where none is named.
        progress: Called with the bytes written so far and the total.

    Raises:
        WeightsError: The source is not exactly a policy's checkpoint.
        ConfigError: There is no such format for this policy, an argument does not fit it, the given tokenizer
            cannot be read, or the source's pipeline makes something else than the policy reads.
        StatisticsError: The source's statistics are of another width than the rest.
        SaveError: `dst` holds something already or belongs to a run, or the disk is full. Nothing is left
            behind.
    """
    wanted_dtype, shard_bytes = as_dtype(dtype), _shard_bytes(max_shard_size, to)
    with open_stored(local_folder(src, revision, token)) as stored:
        policy, source = recognise(stored)
        target = format_of(policy, to)
        names = pipeline_names(stored.folder)
        keeps_all = bool(names) and to == "vla" and pipeline is None
        if not keeps_all:
            check_choice(names, pipeline)
        module = weights_module(policy)
        settings = module.read_config(stored, source, config)
        changed = _changed(module, stored, source, settings, config)
        empty = empty_policy(policy_entry(policy).policy, settings)
        shapes = parameter_shapes(empty)
        plan = plan_load(source, stored, shapes)
        written_dtype = wanted_dtype or main_dtype(plan.pieces)
        items = _items(plan_write(target, shapes, written_dtype), plan.pieces)
        own = read_pipeline(
            stored.folder if pipeline is None else stored.folder / PIPELINES_FOLDER / pipeline,
            source.name,
            policy,
            settings,
            stored_config=stored.config,
            tokenizer=_opened(tokenizer),
            asset_id=asset_id,
        )
        robots = read_pipelines(stored.folder) if keeps_all else {}
        check_pipelines(empty, robots if own is None else {**robots, None: own}, stored.folder)
        config_file = module.write_config(settings, target, written_dtype)
        with atomic_folder(refuse_run(expanded(dst))) as folder:
            write_tensors(
                folder,
                items,
                stored.reader,
                dtype=wanted_dtype,
                metadata=_metadata(settings, target),
                max_shard_bytes=shard_bytes,
                progress=progress,
            )
            atomic_write(folder / "config.json", json.dumps(config_file, indent=2) + "\n")
            if own is not None:
                write_pipeline(own, folder, target.name, settings)
            write_pipelines(robots, folder)
            files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    notes = plan.notes if own is not None or robots else (*plan.notes, _CANNOT_ACT)
    return _report(policy, source, target, items, wanted_dtype, files, plan.dropped, (*changed, *notes))


def _changed(
    module: Any, stored: Stored, source: Format, settings: Any, asked: dict[str, Any] | None
) -> tuple[str, ...]:
    """Say which of the asked fields differ from what the source says, or from its default."""
    if not asked:
        return ()
    try:
        before = module.read_config(stored, source, None).to_dict()
    except VlaError:  # it cannot be read without what was given
        return ()
    after = settings.to_dict()
    return tuple(
        f"{name} is {after[name]!r} as given, not {before[name]!r} as the source says, or as is the default."
        for name in type(settings).renamed(asked)
        if name in before and before[name] != after[name]
    )


def _opened(tokenizer: Any) -> Any:
    """Return a tokenizer: one that cannot be read is refused, needed or not."""
    return load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer


def _shard_bytes(size: str | int | None, to: str) -> int | None:
    if to in SINGLE_FILE_FORMATS:
        if size is not None:
            raise ConfigError(f"The format '{to}' is a single file: leave max_shard_size out.")
        return None
    if size is None:
        return DEFAULT_SHARD_BYTES
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    text = str(size).strip().upper()
    digits = text.rstrip("KMGIB ")
    unit = text.removeprefix(digits).strip()
    if not digits.isdigit() or unit not in units or int(digits) == 0:
        raise ConfigError(f"max_shard_size must be a size such as '5GB' or '500MB', got {size!r}.")
    return int(digits) * units[unit]


def _items(names: dict[str, str | Fill], pieces: dict[str, Piece]) -> dict[str, Piece | Fill]:
    return {theirs: pieces[ours] if isinstance(ours, str) else ours for theirs, ours in names.items()}


def _metadata(settings: Any, target: Format) -> dict[str, str]:
    """Return the metadata next to the tensors: our config, which other formats cannot express."""
    if target.name == "vla":
        return {"format": "pt"}
    return {"format": "pt", VLA_CONFIG: json.dumps(json.loads(settings.to_json_string(use_diff=False)))}


def _report(
    policy: str,
    source: Format,
    target: Format,
    items: dict[str, Piece | Fill],
    dtype: torch.dtype | None,
    files: list[str],
    dropped: dict[str, str],
    notes: tuple[str, ...],
) -> ConversionReport:
    counts = [torch.Size(item.shape).numel() for item in items.values()]
    stored = [item.dtype if isinstance(item, Fill) else item.info.dtype for item in items.values()]
    sizes = [count * (dtype or one).itemsize for count, one in zip(counts, stored, strict=True)]
    return ConversionReport(
        policy, source.name, target.name, len(items), sum(counts), sum(sizes), tuple(files), dropped, notes
    )
