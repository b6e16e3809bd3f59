"""`vla info DATASET`: what the metadata says; no frame is decoded."""

import json
from statistics import median
from typing import Any

import typer

from vla.cli.console import print_rows

SHOWN_TASKS = 5


def print_dataset(what: str, revision: str | None = None, as_json: bool = False) -> None:
    """Describe a dataset folder or hub id.

    Raises:
        DatasetError: It is missing, damaged, or cannot be reached.
    """
    from vla.data import LeRobotDataset

    dataset = LeRobotDataset(what, action_horizon=1, revision=revision)
    about = dataset.info
    lengths = sorted(episode.length for episode in dataset.episodes)
    values: dict[str, Any] = {
        "version": str(about.version),
        "robot": str(about.robot_type),
        "fps": about.fps,
        "episodes": len(lengths),
        "frames": len(dataset),
        "episode_length": {"min": lengths[0], "median": median(lengths), "max": lengths[-1]},
        "cameras": list(about.cameras),
        "state_dim": dataset.state_dim,
        "action_dim": dataset.action_dim,
        "tasks": list(dataset.tasks),
        "fingerprint": dataset.fingerprint,
    }
    if as_json:
        typer.echo(json.dumps({"kind": "dataset", "path": what, **values}, indent=2))
        return
    print_rows(f"dataset {what}", _rows(values))


def _rows(values: dict[str, Any]) -> dict[str, str]:
    length, tasks = values["episode_length"], values["tasks"]
    return {
        "version": values["version"],
        "robot": values["robot"],
        "frames per second": f"{values['fps']:g}",
        "episodes": f"{values['episodes']}, of {length['min']} to {length['max']} frames, "
        f"median {length['median']:g}",
        "frames": str(values["frames"]),
        "cameras": ", ".join(values["cameras"]) or "none",
        "state": f"{values['state_dim']} values",
        "action": f"{values['action_dim']} values",
        "tasks": "; ".join(tasks[:SHOWN_TASKS]) + ("; ..." if len(tasks) > SHOWN_TASKS else ""),
        "fingerprint": values["fingerprint"],
    }
