"""`vla info PATH`: what a checkpoint folder or a dataset holds, without loading a tensor or a frame."""

import json
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from vla.cli.console import checkpoint_folder, console
from vla.errors import ConfigError, WeightsError


def info(
    path: Annotated[
        str,
        typer.Argument(
            help="Checkpoint folder, or dataset folder or hub id.", metavar="PATH", show_default=False
        ),
    ],
) -> None:
    """Describe a checkpoint (parameters, pipeline, statistics) or a dataset (version, episodes, keys).

    A folder with config.json is a checkpoint, and a training run's folder stands for its last one; a folder
    with meta/info.json, or a hub id, is a dataset.

    Example: vla info bridge_mini_v3
    """
    folder = checkpoint_folder(path)
    if (folder / "config.json").is_file():
        _print("checkpoint", path, _checkpoint_rows(folder))
    elif (folder / "meta" / "info.json").is_file() or (not folder.exists() and path.count("/") == 1):
        _print("dataset", path, _dataset_rows(path))
    elif folder.exists():
        raise ConfigError(f"{path} is no checkpoint (config.json) and no dataset (meta/info.json).")
    else:
        raise ConfigError(f"There is no {path}.")


def _print(kind: str, path: str, rows: dict[str, str]) -> None:
    from rich.table import Table

    table = Table(title=f"{kind} {path}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    console().print(table)


def _dataset_rows(path: str) -> dict[str, str]:
    from vla.data import LeRobotDataset

    dataset = LeRobotDataset(path, action_horizon=1)
    about = dataset.info
    lengths = sorted(episode.length for episode in dataset.episodes)
    return {
        "version": str(about.version),
        "robot": str(about.robot_type),
        "frames per second": f"{about.fps:g}",
        "episodes": f"{len(lengths)}, of {lengths[0]} to {lengths[-1]} frames, median {median(lengths):g}",
        "frames": str(len(dataset)),
        "cameras": ", ".join(about.cameras) or "none",
        "state": f"{dataset.state_dim} values",
        "action": f"{dataset.action_dim} values",
        "tasks": "; ".join(list(dataset.tasks)[:5]) + ("; ..." if len(dataset.tasks) > 5 else ""),
        "fingerprint": dataset.fingerprint,
    }


def _checkpoint_rows(folder: Path) -> dict[str, str]:
    config = _read_json(folder / "config.json")
    rows = {"policy": str(config.get("model_type", "unknown"))}
    for key in ("action_horizon", "max_action_dim", "max_state_dim", "max_prompt_length", "image_size"):
        if key in config:
            rows[key.replace("_", " ")] = str(config[key])
    if config.get("cameras"):
        rows["cameras"] = ", ".join(config["cameras"])
    rows |= _weights_rows(folder)
    if (folder / "pipeline.json").is_file():
        steps = _read_json(folder / "pipeline.json").get("steps", [])
        rows["pipeline"] = " -> ".join(str(step.get("type")) for step in steps)
    else:
        rows["pipeline"] = "none: loads as a model, not as a robot policy"
    if (folder / "statistics.json").is_file():
        from vla.transforms.normalize import Statistics

        statistics = Statistics.load(folder)
        rows["statistics"] = ", ".join(
            f"{name}: {len(values.mean)} dimensions from {values.count} values"
            for name, values in statistics.features.items()
        )
        rows["counted"] = statistics.convention
        rows["from dataset"] = statistics.source
    else:
        rows["statistics"] = "none"
    return rows


def _weights_rows(folder: Path) -> dict[str, str]:
    """Count the parameters from the files' headers; no tensor is read."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    count, tensors, dtypes = 0, 0, set()
    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118 (a safetensors handle is no dictionary)
                    view = opened.get_slice(name)
                    size = 1
                    for side in view.get_shape():
                        size *= side
                    count, tensors = count + size, tensors + 1
                    dtypes.add(str(view.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file} is not a whole safetensors file: {error}.") from error
    if not files:
        return {"weights": "none"}
    bytes_on_disk = sum(file.stat().st_size for file in files)
    return {
        "parameters": f"{count:,} in {tensors} tensors",
        "weights": f"{', '.join(sorted(dtypes))}; {bytes_on_disk / 1e6:,.1f} MB in {len(files)} file(s)",
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold an object, got {type(values).__name__}.")
    return values
