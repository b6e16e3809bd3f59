"""`vla info WHAT`: what a checkpoint or a dataset holds, without loading a tensor or a frame."""

from pathlib import Path
from typing import Annotated

import typer

from vla.cli.console import checkpoint_folder
from vla.cli.info.memory import Checkpointing, EngineName, MemoryOptions
from vla.errors import ConfigError, DatasetError, WeightsError

KNOWN = "known"

WhatArgument = Annotated[
    str,
    typer.Argument(
        help="Checkpoint: folder, hub id or short name. Dataset: folder or hub id. Or the word known.",
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
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
TokenOption = Annotated[
    str | None,
    typer.Option(help="Hub token; what `hf auth login` stored where not given.", envvar="HF_TOKEN"),
]


def info(
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
    as_json: JsonOption = False,
    revision: RevisionOption = None,
    token: TokenOption = None,
) -> None:
    """Describe a checkpoint of any format, or a dataset.

    A checkpoint: format, policy, dimensions, parameters by part, dtypes, cameras, pipeline, statistics,
    licence. Only headers are read, and of a hub repository only headers are downloaded, except to compare.
    A training run's folder stands for its last checkpoint. The word known lists the published checkpoints
    that have a short name; a folder of that name is ./known.

    Example: vla info lerobot/pi0_base --memory --engine fsdp2 --gpus 8
    """
    if what == KNOWN:
        from vla.cli.info.known import print_known

        print_known(as_json)
        return
    name = str(checkpoint_folder(what))
    if diff is not None:
        from vla.cli.info.diff import print_diff

        print_diff(name, str(checkpoint_folder(diff)), revision=revision, token=token, as_json=as_json)
        return
    if not _is_dataset(what):
        from vla.cli.info.checkpoint import print_checkpoint
        from vla.weights.headers import header_folder

        options = MemoryOptions(batch_size, cameras, text, ema, activation_checkpointing, engine, gpus)
        try:
            with header_folder(name, revision, token) as folder:
                print_checkpoint(
                    what, folder, memory=options if memory else None, asset_id=asset_id, as_json=as_json
                )
            return
        except WeightsError as error:
            if not _may_be_dataset(what, error):
                raise
    if memory:
        raise ConfigError(f"--memory is about checkpoints, and there is no checkpoint {what}.")
    _print_dataset(what, revision, as_json)


def _is_dataset(what: str) -> bool:
    folder = Path(what).expanduser()
    if not folder.exists():
        return False
    if (folder / "meta" / "info.json").is_file():
        return True
    kinds = (
        "config.json",
        "*.safetensors",
        "*.safetensors.index.json",
        "_METADATA",
        "params",
        "*.bin",
        "*.pt",
    )
    inside = checkpoint_folder(what)
    if inside.is_dir() and not any(next(inside.glob(kind), None) for kind in kinds):
        raise ConfigError(
            f"{what} is neither a checkpoint (config.json, weights) nor a dataset (meta/info.json)."
        )
    return False


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
