"""`vla convert SRC DST --to FORMAT`: a checkpoint in another format, streamed from disk to disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vla.cli.console import byte_bar, print_rows
from vla.errors import ConfigError

if TYPE_CHECKING:
    from vla.checkpoints.convert import ConversionReport

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
TokenizerOption = Annotated[
    str | None, typer.Option(help="Folder or hub id of the tokenizer where SRC brings none.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="What SRC does not record: action_horizon=10.", metavar="FIELD=VALUE"),
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
    tokenizer: TokenizerOption = None,
    fields: SetOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
) -> None:
    """Write a checkpoint in another format: weights, config, statistics and pipeline.

    SRC may be of any format that vla reads, openpi's JAX checkpoints included. Tensors are streamed, so that
    memory stays below 2 GB whatever the size; DST is written whole or not at all. Without --dtype every value
    stays as it is, bit for bit.

    Example: vla convert lerobot/pi0_base pi0_base_openpi --to openpi --dtype bfloat16
    """
    overrides = _parse(fields or [])
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ConfigError(f"{dst} is already there; give another DST or remove it.")

    from vla.checkpoints.convert import convert as run

    with byte_bar("converting") as progress:
        report = run(
            src,
            dst,
            to,
            dtype=dtype,
            revision=revision,
            token=token,
            max_shard_size=max_shard_size,
            config=overrides or None,
            tokenizer=tokenizer,
            asset_id=asset_id,
            pipeline=pipeline,
            progress=progress,
        )
    print_rows(f"{src} -> {dst}", _in_words(report))


def _parse(fields: list[str]) -> dict[str, Any]:
    import yaml

    values = {}
    for entry in fields:
        name, is_pair, text = entry.partition("=")
        if not is_pair or not name:
            raise ConfigError(f"--set takes FIELD=VALUE, as in action_horizon=10; got '{entry}'.")
        try:
            values[name] = yaml.safe_load(text)
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
