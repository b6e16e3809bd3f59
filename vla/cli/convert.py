"""`vla convert SRC DST --to FORMAT`: a checkpoint in another format, streamed from disk to disk."""

import logging
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vla.cli.console import byte_bar, print_rows, quiet_loading
from vla.cli.paths import check_new_folder
from vla.errors import ConfigError
from vla.paths import expanded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vla.checkpoints.convert import ConversionReport

logger = logging.getLogger(__name__)

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="Checkpoint of any format: folder, hub id or short name.", metavar="SRC", show_default=False
    ),
]
TargetArgument = Annotated[
    Path, typer.Argument(help="New folder to write into.", metavar="DST", show_default=False)
]
FormatOption = Annotated[
    Literal["vla", "lerobot", "transformers", "openpi"],
    typer.Option("--to", help="What to write.", show_default=False),
]
DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Convert the weights on the way; as stored where not given."),
]
ShardOption = Annotated[
    str | None,
    typer.Option(help="Largest file, 5GB where not given; for formats that know shards.", metavar="SIZE"),
]
AssetOption = Annotated[
    str | None, typer.Option(help="Whose statistics to take where SRC has those of several robots.")
]
PipelineOption = Annotated[
    str | None,
    typer.Option(help="Which robot to write where SRC was trained on several.", metavar="NAME"),
]
BaseOption = Annotated[
    str | None,
    typer.Option(help="Of an adapter: where its base lies, if no longer where it says.", metavar="WHERE"),
]
TokenizerOption = Annotated[
    str | None, typer.Option(help="Folder or hub id of the tokenizer where SRC brings none.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="What SRC does not record: action_horizon=10. A value that it has is replaced, with a note.",
        metavar="FIELD=VALUE",
    ),
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of SRC on the hub.")]
TokenOption = Annotated[
    str | None,
    typer.Option(help="Hub token; what `hf auth login` stored where not given.", envvar="HF_TOKEN"),
]


def convert(
    src: SourceArgument,
    dst: TargetArgument,
    to: FormatOption,
    dtype: DtypeOption = None,
    max_shard_size: ShardOption = None,
    asset_id: AssetOption = None,
    pipeline: PipelineOption = None,
    base: BaseOption = None,
    tokenizer: TokenizerOption = None,
    fields: SetOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
) -> None:
    """Write a checkpoint in another format: weights, config, statistics and pipeline.

    SRC may be of any format that vla reads, openpi's JAX checkpoints included. Tensors are streamed, so that
    memory stays below 2 GB whatever the size; DST is written whole or not at all. Without --dtype every value
    stays as it is, bit for bit. An adapter is merged with its base first, in memory, as float32.

    Example: vla convert lerobot/pi0_base pi0_base_openpi --to openpi --dtype bfloat16
    """
    overrides = _parse(fields or [])
    from vla.checkpoints.replace import refuse_run

    refuse_run(dst)
    check_new_folder(dst, "DST", empty=True)

    from vla.checkpoints.convert import convert as run
    from vla.weights.source import local_folder

    if expanded(src).is_dir():
        src = str(local_folder(src, revision))
        check_new_folder(dst, "DST", src, empty=True)
    with (
        _whole(src, base, {"revision": revision, "token": token}) as (whole, hub),
        byte_bar("converting") as progress,
    ):
        report = run(
            whole,
            dst,
            to,
            dtype=dtype,
            **hub,
            max_shard_size=max_shard_size,
            config=overrides or None,
            tokenizer=tokenizer,
            asset_id=asset_id,
            pipeline=pipeline,
            progress=progress,
        )
    print_rows(f"{src} -> {dst}", _in_words(report))


@contextmanager
def _whole(src: str, base: str | None, hub: dict[str, Any]) -> "Iterator[tuple[str | Path, dict[str, Any]]]":
    """Yield where a whole checkpoint lies, with options of the hub: an adapter's is made for the time."""
    from vla.weights.formats import BASE_FILE
    from vla.weights.source import local_folder

    folder = local_folder(src, **hub) if base is not None or expanded(src).is_dir() else None
    if folder is None or not (folder / BASE_FILE).is_file():
        if base is not None:
            raise ConfigError(f"--base is about adapters, and {src} is a whole checkpoint.")
        yield src, hub
        return
    from vla.adapters.files import merge

    quiet_loading()
    logger.info("%s is an adapter: it is merged with its base first", src)
    with tempfile.TemporaryDirectory(prefix="vla_merge_") as temporary:
        merged = Path(temporary) / "merged"
        merge(folder, merged, base=base, token=hub["token"])
        yield merged, {}


def _parse(fields: list[str]) -> dict[str, Any]:
    import yaml

    from vla.plain_yaml import load_yaml

    values = {}
    for entry in fields:
        name, is_pair, text = entry.partition("=")
        if not is_pair or not name:
            raise ConfigError(f"--set takes FIELD=VALUE, as in action_horizon=10; got '{entry}'.")
        if name in values:
            raise ConfigError(f"--set gives {name} twice; give it once.")
        try:
            values[name] = load_yaml(text)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"--set {entry}: the value cannot be read ({reason}).") from error
    return values


def _in_words(report: "ConversionReport") -> dict[str, str]:
    rows = {
        "policy": report.policy,
        "format": f"{report.source_format} -> {report.target_format}",
        "tensors": f"{report.tensors}, {report.parameters:,} parameters",
        "weights": f"{report.total_bytes / 1e6:,.1f} MB",
        "files": ", ".join(report.files),
    }
    if report.dropped:
        rows["left out"] = "; ".join(f"{name} ({reason})" for name, reason in report.dropped.items())
    return rows | {f"note {at}": note for at, note in enumerate(report.notes, 1)}
