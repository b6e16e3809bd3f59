"""`vla info known`: the published checkpoints that have a short name."""

import json
from dataclasses import asdict

import typer

from vla.cli.console import console


def print_known(as_json: bool = False) -> None:
    """Print the table of `vla/weights/known.yaml`; a question mark is what no page says."""
    from vla.weights.known import known_checkpoints

    known = known_checkpoints().values()
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in known], indent=2))
        return
    from rich.table import Table

    table = Table(title="published checkpoints", title_justify="left")
    for column in ("name", "id", "format", "policy", "parameters", "size", "licence", "gated"):
        table.add_column(column, justify="right" if column in ("parameters", "size") else "left")
    for one in known:
        table.add_row(
            one.name,
            one.id,
            one.format,
            one.policy or "-",
            f"{one.parameters / 1e9:.2f} B" if one.parameters else "?",
            f"{one.bytes / 1e9:.1f} GB" if one.bytes else "?",
            one.license or "?",
            {True: "yes", False: "no", None: "?"}[one.gated],
        )
    console().print(table)
    console().print(
        "A name stands for its id wherever a checkpoint is asked for. Notes: vla info known --json"
    )
