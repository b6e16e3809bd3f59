"""`vla merge ADAPTER DST`: base and adapter as one whole checkpoint."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vla.cli.console import print_rows, quiet_loading
from vla.cli.paths import check_new_folder

AdapterArgument = Annotated[
    str,
    typer.Argument(help="Adapter that vla trained: folder or hub id.", metavar="ADAPTER", show_default=False),
]
TargetArgument = Annotated[
    Path, typer.Argument(help="New folder to write into.", metavar="DST", show_default=False)
]
BaseOption = Annotated[
    str | None, typer.Option(help="Where the base lies, if no longer where the adapter says.")
]
DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights that are written.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of ADAPTER on the hub.")]
TokenOption = Annotated[
    str | None,
    typer.Option(help="Hub token; what `hf auth login` stored where not given.", envvar="HF_TOKEN"),
]


def merge(
    adapter: AdapterArgument,
    dst: TargetArgument,
    base: BaseOption = None,
    dtype: DtypeOption = "float32",
    revision: RevisionOption = None,
    token: TokenOption = None,
) -> None:
    """Write an adapter and its base as one whole checkpoint, which needs neither of them any more.

    The base is found by what the adapter's folder says of it, and must have the fingerprint that it had in
    training. DST is written whole or not at all, with the adapter's pipeline and statistics.

    Example: vla merge runs/cube/checkpoints/last cube_policy --dtype bfloat16
    """
    from vla.checkpoints.replace import refuse_run

    refuse_run(dst)
    check_new_folder(dst, "DST", empty=True)

    from vla.adapters.files import merge as run
    from vla.weights.source import local_folder

    quiet_loading()
    folder = local_folder(adapter, revision, token)
    check_new_folder(dst, "DST", folder, empty=True)
    policy = run(folder, dst, base=base, dtype=dtype, token=token)
    rows = {
        "policy": type(policy).__name__,
        "weights": f"{sum(one.numel() for one in policy.parameters()):,} parameters, {dtype}",
        "statistics": "the adapter's" if policy.pipelines else "none: it cannot act",
    }
    print_rows(f"{adapter} -> {dst}", rows)
