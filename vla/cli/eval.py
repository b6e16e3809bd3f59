"""`vla eval CHECKPOINT`."""

from typing import Annotated

import typer


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help="Policy folder or hub id.", metavar="CHECKPOINT", show_default=False)
    ],
) -> None:
    """Evaluate a policy."""
