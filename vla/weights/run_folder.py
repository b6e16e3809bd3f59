"""Which checkpoint a folder stands for: itself, or the newest complete one of the training run that it is."""

import logging
import re
from pathlib import Path

from vla.atomic import read_json
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

ADAPTERS_FILE = "adapters.json"
"""Which adapters were trained on a folder's policy: nothing of ours then removes or replaces it."""

_STEP = re.compile(r"(?:step-|checkpoint-)?(\d+)")  # ours, transformers' Trainer's, LeRobot's and openpi's
_POLICY_IN_STEP = "pretrained_model"
"""Where a step of LeRobot's keeps the policy, next to the state of the training."""
_ADAPTER = ("adapter_config.json", "adapter_base.json")


def chosen_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that a folder on this machine stands for.

    A checkpoint's folder stands for itself, as does one that is nothing known. The folder of a run, or its
    `checkpoints/`, stands for the newest checkpoint in it that has its weights; the log says which.

    Raises:
        WeightsError: It is a run without a checkpoint; the message says what lies in it. Or a run of
            `vla train` that holds another policy next to its checkpoints, so that either may be meant.
    """
    if holds_checkpoint(folder):
        _check_is_one(folder)
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


def adapters_on(folder: Path) -> str:
    """Return the adapters that a folder is marked as the base of, for a message; empty where it is not."""
    path = folder / ADAPTERS_FILE
    if not path.exists():
        return ""
    try:
        known = [str(one) for one in read_json(path, WeightsError)["adapters"]]
    except (WeightsError, LookupError, TypeError):
        known = []
    said = [one if Path(one).exists() else f"{one} (no longer there)" for one in known]
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    return ", ".join(said[:3]) + more or f"those of {path}"


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run of `vla train`; other libraries' are known by their steps alone."""
    return (folder / "recipe.yaml").is_file() and (
        (folder / "reproduce.json").is_file()
        or ((folder / "versions.json").is_file() and (folder / CHECKPOINTS_FOLDER).is_dir())
        or bool(_own_steps(folder))
    )


def run_of(place: Path) -> Path | None:
    """Return the run whose folder, `checkpoints/` or one directly in that a path is; None of no run's."""
    above = place.absolute()
    found = [above]
    found += [above.parent] if above.name == CHECKPOINTS_FOLDER else []
    found += [above.parents[1]] if above.parent.name == CHECKPOINTS_FOLDER else []
    return next((folder for folder in found if is_run(folder)), None)


def _check_is_one(folder: Path) -> None:
    """Raise where a run's folder holds a policy of its own, next to the run's checkpoints."""
    steps = [one for one in _own_steps(folder) if holds_checkpoint(one)]
    if not steps:
        return
    if is_run(folder):
        raise WeightsError(
            f"{folder} is a training run, whose newest checkpoint is {steps[-1]}, and a policy was saved "
            f"into the same folder ({listing(folder)}): name the checkpoint, {steps[-1]}, or move the other "
            "policy's files into a folder of their own."
        )
    logger.warning("%s is taken as the policy that it holds itself, not as %s", folder, steps[-1])


def _own_steps(folder: Path) -> list[Path]:
    """Return the policies in a folder's `checkpoints/`, oldest first."""
    return list_steps(folder / CHECKPOINTS_FOLDER) if (folder / CHECKPOINTS_FOLDER).is_dir() else []


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
