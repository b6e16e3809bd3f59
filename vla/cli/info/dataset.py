"""`vla info DATASET`: what the metadata says; no frame is decoded."""

from statistics import median
from typing import TYPE_CHECKING, Any

from vla.cli.console import print_rows
from vla.cli.logs import print_json
from vla.types import ACTION_KEY, STATE_KEY

if TYPE_CHECKING:
    from vla.data import LeRobotDataset

SHOWN_TASKS = 5


def print_dataset(what: str, revision: str | None = None, as_json: bool = False) -> None:
    """Describe a dataset folder or hub id.

    Raises:
        DatasetError: It is missing, damaged, or cannot be reached.
    """
    from vla.data import LeRobotDataset
    from vla.data.hub import locate
    from vla.data.lerobot.schema import read_info

    found = read_info(locate(what, revision).root)  # nobody has said which columns are the state
    dataset = LeRobotDataset(
        what,
        action_horizon=1,
        revision=revision,
        state_key=found.likely_columns(STATE_KEY, "state"),
        action_key=found.likely_columns(ACTION_KEY, "actions"),
    )
    show_dataset(what, dataset, as_json)


def show_dataset(what: str, dataset: "LeRobotDataset", as_json: bool, **more: Any) -> None:
    """Describe an opened dataset, and what more is known of it."""
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
        "state_columns": list(dataset.state_columns),
        "action_columns": list(dataset.action_columns),
        "tasks": list(dataset.tasks),
        "left_out": dict(dataset.left_out)
        | {key: f"depth: {about.features[key].depth}" for key in about.depth_maps},
        "fingerprint": dataset.fingerprint,
        **more,
    }
    if as_json:
        print_json({"kind": "dataset", "path": what, **values})
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
        "state": _vector(values["state_dim"], values["state_columns"]),
        "action": _vector(values["action_dim"], values["action_columns"]),
        "tasks": "; ".join(tasks[:SHOWN_TASKS]) + ("; ..." if len(tasks) > SHOWN_TASKS else ""),
        **({"left out": "; ".join(values["left_out"])} if values["left_out"] else {}),
        "fingerprint": f"{values['fingerprint']} (of all episodes and cameras)",
    }


def _vector(width: int, columns: list[str]) -> str:
    usual = columns in ([STATE_KEY], [ACTION_KEY])
    return f"{width} values" + ("" if usual else f" ({', '.join(columns)})")
