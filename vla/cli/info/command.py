"""`vla info WHAT`: what a checkpoint or a dataset holds, without loading a tensor or a frame."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla.cli.commands import given_options
from vla.cli.info.memory import Checkpointing, EngineName, MemoryOptions
from vla.cli.info.table_options import (
    ColumnOption,
    FpsOption,
    SplitOption,
    SubsetOption,
    check_table,
    table_options,
)
from vla.cli.logs import json_alone
from vla.errors import ConfigError, DatasetError, WeightsError
from vla.paths import expanded, is_hidden

if TYPE_CHECKING:
    from vla.data.hf.options import TableOptions

KNOWN = "known"
DATASET = "dataset"

WhatArgument = Annotated[
    str,
    typer.Argument(
        help="Checkpoint: folder, hub id or short name. Dataset: folder or hub id; after hf:, a table of "
        "`datasets`. Or the word known.",
        metavar="WHAT",
        show_default=False,
    ),
]
DiffOption = Annotated[
    str | None, typer.Option(help="Compare with this checkpoint, tensor by tensor.", metavar="OTHER")
]
MemoryOption = Annotated[
    bool, typer.Option("--memory", help="Predict the memory of acting and of training, by precision.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Samples of a batch of one GPU, for --memory.")]
CamerasOption = Annotated[
    int | None, typer.Option(min=1, help="Cameras that are there, for --memory; all of them by default.")
]
TextOption = Annotated[
    int,
    typer.Option(min=0, help="Response tokens of each sample that are learned, for --memory.", metavar="N"),
]
EmaOption = Annotated[bool, typer.Option("--ema", help="Keep an average of what is trained, for --memory.")]
CheckpointingOption = Annotated[
    Checkpointing,
    typer.Option("--activation-checkpointing", help="Layers that are computed again, for --memory."),
]
EngineOption = Annotated[
    EngineName,
    typer.Option(
        help="What distributes the training, for --memory. ddp shares nothing out, zero1 the optimiser's "
        "state, zero2 the gradients as well, fsdp2 and zero3 everything but activations."
    ),
]
GpusOption = Annotated[int, typer.Option(min=1, help="GPUs that share it, for --memory.", metavar="N")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
AssetOption = Annotated[
    str | None, typer.Option(help="Whose statistics to describe where there are those of several robots.")
]
BaseOption = Annotated[
    str | None,
    typer.Option(help="Of an adapter: where its base lies, if no longer where it says.", metavar="WHERE"),
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
TokenOption = Annotated[
    str | None,
    typer.Option(help="Hub token; what `hf auth login` stored where not given.", envvar="HF_TOKEN"),
]


_OF_ALL = ("what", "as_json", "token")
_OF_MEMORY = ("batch_size", "cameras", "text", "ema", "activation_checkpointing", "engine", "gpus")


def info(
    context: typer.Context,
    what: WhatArgument,
    diff: DiffOption = None,
    memory: MemoryOption = False,
    batch_size: BatchOption = 1,
    cameras: CamerasOption = None,
    text: TextOption = 0,
    ema: EmaOption = False,
    activation_checkpointing: CheckpointingOption = "none",
    engine: EngineOption = "ddp",
    gpus: GpusOption = 1,
    asset_id: AssetOption = None,
    base: BaseOption = None,
    column: ColumnOption = None,
    split: SplitOption = None,
    subset: SubsetOption = None,
    fps: FpsOption = None,
    as_json: JsonOption = False,
    revision: RevisionOption = None,
    token: TokenOption = None,
) -> None:
    """Describe a checkpoint of any format, or a dataset.

    A checkpoint: format, policy, dimensions, parameters by part, dtypes, cameras, pipeline, statistics,
    licence. An adapter: its rank, what it adapts, and its base. Only headers are read, and of a hub
    repository only headers are downloaded, except to compare. A training run's folder stands for its newest
    checkpoint. The word known lists the published checkpoints that have a short name; a folder of that name
    is ./known.

    Example: vla info lerobot/pi0_base --memory --engine fsdp2 --gpus 8
    """
    if (given := given_options(context, _OF_MEMORY)) and not memory:
        raise ConfigError(f"{given[0]} is about --memory, which is not given.")
    if memory and diff is not None:
        raise ConfigError("--diff compares two checkpoints, --memory predicts for one: give one of them.")
    if what == KNOWN and (given := given_options(context, context.params.keys() - {*_OF_ALL})):
        raise ConfigError(f"{given[0]} is about one checkpoint or dataset; the word known lists checkpoints.")
    if diff is not None:
        _check_diff(context, what, diff)
    table = table_options(column, split, subset, fps)
    check_table(what, table)
    options = MemoryOptions(batch_size, cameras, text, ema, activation_checkpointing, engine, gpus)
    with json_alone(as_json):
        if what.startswith("hf:"):
            about = {"--diff": diff, "--memory": memory, "--asset-id": asset_id, "--base": base}
            _print_table(what, table, about, revision, as_json)
        elif what == KNOWN:
            from vla.cli.info.known import print_known

            print_known(as_json)
        elif diff is not None:
            from vla.cli.info.diff import print_diff

            print_diff(what, diff, revision=revision, token=token, as_json=as_json)
        else:
            _print(what, options if memory else None, asset_id, base, revision, token, as_json)


def _check_diff(context: typer.Context, what: str, diff: str) -> None:
    """Refuse to compare what is not a checkpoint, and options that say nothing of a comparison."""
    for one in (what, diff):
        if one.startswith("hf:") or (expanded(one or ".") / "meta" / "info.json").is_file():
            raise ConfigError(f"--diff compares checkpoints, and {one} is a dataset.")
    if given := given_options(context, ("asset_id", "base")):
        raise ConfigError(f"{given[0]} describes one checkpoint, and --diff compares two: give one of them.")


def _print_table(
    what: str, options: "TableOptions", about: Mapping[str, object], revision: str | None, as_json: bool
) -> None:
    """Describe a table of `datasets`; options that are about checkpoints are refused."""
    from vla.cli.info.table import print_table

    for option, value in about.items():
        if value:
            raise ConfigError(f"{option} is about checkpoints, and {what} is a dataset.")
    print_table(what, options, revision, as_json)


def _print(
    what: str,
    memory: MemoryOptions | None,
    asset_id: str | None,
    base: str | None,
    revision: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Describe what the name stands for, a checkpoint or a dataset."""
    place = _checkpoint_here(what)
    if place != DATASET:
        from vla.weights.headers import header_folder

        try:
            with header_folder(place or what, revision, token) as folder:
                _print_policy(what, folder, memory, asset_id, base, token, as_json)
            return
        except WeightsError as error:
            if not _may_be_dataset(what, error):
                raise
    for option, value in {"--memory": memory, "--base": base, "--asset-id": asset_id}.items():
        if value is not None:
            there = "is a dataset" if place == DATASET else "is not one"
            raise ConfigError(f"{option} is about checkpoints, and {what} {there}.")
    _print_dataset(what, revision, as_json)


def _print_policy(
    what: str,
    folder: Path,
    memory: MemoryOptions | None,
    asset_id: str | None,
    base: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Describe a whole checkpoint or an adapter; options that are about the other one are refused."""
    from vla.cli.info.adapter import is_adapter, print_adapter
    from vla.cli.info.checkpoint import print_checkpoint

    if not is_adapter(folder):
        if base is not None:
            raise ConfigError(f"--base is about adapters, and {what} is a whole checkpoint.")
        print_checkpoint(what, folder, memory=memory, asset_id=asset_id, as_json=as_json)
        return
    for option, value in {"--memory": memory, "--asset-id": asset_id}.items():
        if value is not None:
            raise ConfigError(
                f"{option} is about whole checkpoints, and {what} is an adapter: `vla merge {what} DST` "
                "writes one."
            )
    print_adapter(what, folder, base, token, as_json)


def _checkpoint_here(what: str) -> Path | str | None:
    """Return the folder here that it stands for, `DATASET` for a dataset's, None for any other name.

    Raises:
        ConfigError: It is a folder that holds neither a dataset nor anything of a checkpoint.
        WeightsError: It is a run without a checkpoint.
        DatasetError: It is the name of a recording that was not completed, and is not there.
    """
    from vla.data.hub import kind_hint
    from vla.data.writing.partial import about_leftovers
    from vla.weights.files.listing import listing
    from vla.weights.run_folder import PICKLES, chosen_checkpoint, holds_checkpoint

    folder = expanded(what or ".")
    if not what or not folder.is_dir():
        left = about_leftovers(folder) if what and not folder.exists() else ""
        if left:
            raise DatasetError(f"There is no folder {what}. {left}")
        return None
    if (folder / "meta" / "info.json").is_file():
        return DATASET
    chosen = chosen_checkpoint(folder)
    if not holds_checkpoint(chosen) and not any(
        path.name.endswith(PICKLES) and not is_hidden(path) for path in chosen.iterdir()
    ):
        raise ConfigError(
            f"{what} is neither a checkpoint (config.json, weights) nor a dataset (meta/info.json), nor a "
            f"run with a checkpoint: {listing(folder)}.{kind_hint(folder, what)}"
        )
    return chosen


def _may_be_dataset(what: str, error: WeightsError) -> bool:
    """Whether the hub says that it has no model of that name, so that a dataset may be meant."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    from vla.types import HUB_ID

    absent = isinstance(error.__cause__, RepositoryNotFoundError)
    return absent and not isinstance(error.__cause__, GatedRepoError) and bool(HUB_ID.fullmatch(what))


def _print_dataset(what: str, revision: str | None, as_json: bool) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    from vla.cli.info.dataset import print_dataset

    try:
        print_dataset(what, revision, as_json)
    except DatasetError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise DatasetError(
                f"{what} is not a folder here, and neither a model nor a dataset on the hub. "
                "If it is private, log in with `hf auth login`, or pass --token."
            ) from error
        raise
