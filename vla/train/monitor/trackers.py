"""Weights & Biases and trackio next to TensorBoard: one small adapter for both, whose functions are alike.

A run is named after its folder and belongs to the project "vla" (`WANDB_PROJECT` and `TRACKIO_PROJECT`
change that). Each tracker decides where the numbers go: `WANDB_MODE=offline` keeps them in the run's folder.
A resumed run continues in the same record.
"""

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla.errors import MissingDependencyError

PROJECT = "vla"

PACKAGED = ("wandb", "trackio")
"""Trackers that are extras, by the name of their package."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise `MissingDependencyError` unless every tracker is installed: now, not after an hour of loading."""
    for name in names:
        if name in PACKAGED and importlib.util.find_spec(name) is None:
            raise MissingDependencyError(
                f"train.trackers asks for {name}, which is not installed: pip install 'vla[{name}]', or "
                "leave it out."
            )


class Tracker:
    """Sends a run's numbers to one service.

    Args:
        name: "wandb" or "trackio".
        folder: The run's folder.
        config: The recipe by dotted keys.
        identity: The same for every start of one run, and for no other run.

    Raises:
        MissingDependencyError: It is not installed.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any], identity: str) -> None:
        check_trackers([name])
        self._module = importlib.import_module(name)
        options: dict[str, Any] = {"name": f"{folder.name}-{identity}", "resume": "allow"}
        if name == "wandb":  # which knows a run by an id of its own, and writes next to it
            options |= {"name": folder.name, "id": identity, "dir": str(folder)}
        project = os.environ.get(f"{name.upper()}_PROJECT", PROJECT)
        self._module.init(project=project, config=dict(config), **options)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._module.finish()


def open_trackers(
    names: Sequence[str], folder: Path, config: Mapping[str, Any], identity: str
) -> list[Tracker]:
    """Return the trackers among `names`, in their own order; see `Tracker` for the rest."""
    return [Tracker(name, folder, config, identity) for name in PACKAGED if name in names]
