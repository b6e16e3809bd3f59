"""Which checkpoint a folder stands for: itself, or the newest complete one of the training run that it is."""

import logging
import re
from pathlib import Path

from vla.errors import WeightsError
from vla.weights.files.listing import listing, safetensors_in
from vla.weights.files.orbax import find_orbax
from vla.weights.files.row_shards import has_row_shards
from vla.weights.files.safetensors import INDEX_FILE

logger = logging.getLogger(__name__)

CHECKPOINTS_FOLDER = "checkpoints"
"""Where a run keeps its checkpoints; transformers' Trainer keeps them in the run's own folder."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that may run code when they are opened; this project never opens one."""

_STEP = re.compile(r"(?:step-|checkpoint-)?(\d+)")  # ours, transformers' Trainer's, LeRobot's and openpi's
_POLICY_IN_STEP = "pretrained_model"
"""Where a step of LeRobot's keeps the policy, next to the state of the training."""
_ADAPTER = ("adapter_config.json", "adapter_base.json")


def chosen_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that a folder on this machine stands for.

    A checkpoint's folder stands for itself, as does one that is nothing known. The folder of a run, or its
    `checkpoints/`, stands for the newest checkpoint in it that has its weights; the log says which.

    Raises:
        WeightsError: It is a run without a checkpoint; the message says what lies in it.
    """
    if holds_checkpoint(folder):
        return folder
    steps = list_steps(folder)
    for place in reversed(steps):
        if has_weights(place) or any((place / name).is_file() for name in _ADAPTER):
            logger.info("%s stands for its newest checkpoint, %s", folder, place)
            return place
    last = folder / CHECKPOINTS_FOLDER / "last"
    if last.is_dir() and holds_checkpoint(last):  # copied without the steps that it is a link to
        return last
    if steps or (folder / CHECKPOINTS_FOLDER).is_dir() or (folder / "recipe.yaml").is_file():
        raise WeightsError(
            f"{folder} is a training run that holds no complete checkpoint yet: {listing(folder)}. Train on "
            "until one is saved (train.save_every), or give another folder."
        )
    return folder


def holds_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a config, weights that can be opened, or an adapter."""
    return (
        has_weights(folder)
        or any((folder / name).exists() for name in ("config.json", INDEX_FILE, *_ADAPTER))
        or find_orbax(folder) is not None
    )


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors files, of one process or of several, or an orbax tree."""
    return (
        bool(safetensors_in(folder))
        or has_row_shards(folder)
        or any(
            (base / file).exists()
            for base in (folder, folder / "params")
            for file in ("_METADATA", "manifest.ocdbt")
        )
    )


def list_steps(folder: Path) -> list[Path]:
    """Return the policies of the checkpoints in a run's folder or in its `checkpoints/`, oldest first."""
    for place in (folder / CHECKPOINTS_FOLDER, folder):
        inside = place.iterdir() if place.is_dir() else ()
        found = [(int(match[1]), path) for path in inside if (match := _STEP.fullmatch(path.name))]
        steps = [path for _, path in sorted(found) if path.is_dir()]
        if steps:
            return [one / _POLICY_IN_STEP if (one / _POLICY_IN_STEP).is_dir() else one for one in steps]
    return []
