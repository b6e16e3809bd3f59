"""`vla info known`: the published checkpoints that have a short name."""

from dataclasses import asdict

from vla.cli.console import console
from vla.cli.logs import print_json


def print_known(as_json: bool = False) -> None:
    """Print the table of `vla/weights/known.yaml`; what no page says is not made up."""
    from vla.weights.known import known_checkpoints

    known = known_checkpoints().values()
    if as_json:
        print_json([asdict(one) for one in known])
        return
    for one in known:
        parameters = f"{one.parameters / 1e9:.2f} B parameters" if one.parameters else "size unknown"
        size = f"{one.bytes / 1e9:.1f} GB" if one.bytes else parameters
        licence = f"licence {one.license or 'not stated'}{', gated' if one.gated else ''}"
        console().print(f"{one.name}: {one.policy or 'no policy'}, {one.format}, {size}, {licence}")
        console().print(f"    {one.id}")
    console().print(
        "A name stands for its id wherever a checkpoint is asked for. Notes: vla info known --json"
    )
