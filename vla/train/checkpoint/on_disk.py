"""Checkpoints on disk, which are either complete or absent.

    checkpoints/
      step-000100/           a policy folder (`vla.load` takes it) plus what training needs to continue:
        training/              AdamW's moments; and, where the policy folder has averaged weights, those
                               that training continues with
        training_state.pt      position in the data, running means, counts, fingerprints of the other files
        recipe.yaml            the recipe that wrote it
        versions.json          the packages that wrote it
        adapters.json          adapters that were trained on it, if any: it is then never removed
      last -> step-000100    always the newest

A folder with a checkpoint's name is always complete: it was written under another name, flushed to the disk
and renamed.
"""

import logging
import os
import pickle
import re
import shutil
import struct
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vla.atomic import SaveError, atomic_folder, remove_leftovers
from vla.errors import TrainingError
from vla.train.checkpoint.fingerprints import (
    FINGERPRINTS,
    check_fingerprints,
    fingerprint,
    fingerprints_of,
)
from vla.train.error_files import is_lost_connection
from vla.train.rescue import is_lost_worker
from vla.weights.run_folder import ADAPTERS_FILE, adapters_on

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.pt"
LAST = "last"
_UNREADABLE = (
    *(OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, LookupError, TypeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
"""What torch and `zipfile` make of a damaged file, depending on where the damage is."""
_NAME = re.compile(r"step-(\d{6,})")
_LEFTOVER = re.compile(r"\.((step-\d{6,}|last)\.removed|last)\.tmp")


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` steps."""
    return f"step-{step:06d}"


def checkpoint_step(path: Path) -> int:
    """Return the number of steps that a checkpoint's name states."""
    match = _NAME.fullmatch(path.name)
    assert match, path
    return int(match[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in `folder`, oldest first; none where it does not exist."""
    if not folder.is_dir():
        return []
    found = [
        path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / STATE_FILE).is_file()
    ]
    return sorted(found, key=checkpoint_step)


def damaged_checkpoints(folder: Path) -> list[Path]:
    """Return what has a checkpoint's name in `folder` but lacks its state, oldest first."""
    whole = list_checkpoints(folder)
    named = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted((path for path in named if path not in whole), key=checkpoint_step)


def save_checkpoint(
    folder: Path,
    step: int,
    write_policy: Callable[[Path], object],
    state: dict[str, Any],
    texts: dict[str, str],
) -> Path:
    """Write the checkpoint of `step` into `folder`, whole or not at all, and point `last` at it.

    Args:
        folder: The run's `checkpoints/`; made where absent, unlike the run's folder.
        step: Optimiser steps done.
        write_policy: Called with an empty folder, writes the policy into it (`policy.save_pretrained`).
        state: What `load_training_state` gives back: tensors and plain values.
        texts: Small files by name.

    Returns:
        The checkpoint's folder.

    Raises:
        TrainingError: The disk is full or cannot be written. Earlier checkpoints are untouched.
    """
    final = folder / checkpoint_name(step)
    with write_errors(final):
        with atomic_folder(final, inside=folder.parent) as partial:
            write_policy(partial)
            write_rest(partial, state, texts)
        point_last_at(final)
    return final


def write_rest(folder: Path, state: dict[str, Any], texts: dict[str, str]) -> None:
    """Write what a checkpoint holds besides the policy into its folder; see `save_checkpoint`."""
    state = {**state, FINGERPRINTS: fingerprints_of(folder)}
    with open(folder / STATE_FILE, "wb") as file:  # given a path, torch would hide the cause
        torch.save(state, file)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


@contextmanager
def write_errors(final: Path) -> Iterator[None]:
    """Turn any failure to write a checkpoint into a `TrainingError`."""
    try:
        yield
    # safetensors and torch report a failed write in their own ways, torch as a RuntimeError.
    except (OSError, SafetensorError, RuntimeError) as error:
        if is_lost_connection(error) or is_lost_worker(error):
            raise
        cause = _write_error(error)
        full = "No space left" in str(cause) or "the disk is full" in str(cause)
        said = str(cause).rstrip(".") if isinstance(cause, SaveError) or not full else "the disk is full"
        said = said if isinstance(cause, SaveError) else f"{final} could not be written: {said}"
        remedy = "make room" if full else "mend that"
        raise TrainingError(f"{said}. Earlier checkpoints are whole: {remedy}, then resume.") from error


def prune_checkpoints(folder: Path, keep_last: int | None) -> None:
    """Remove all but the `keep_last` newest checkpoints, and those that adapters rest on; None keeps all."""
    old = list_checkpoints(folder)[: -keep_last if keep_last else 0]
    for path in old:
        if adapters := adapters_on(path):
            if path == old[-1]:  # once, when its time has come
                logger.warning("%s stays, beyond keep_last: adapters rest on it, %s", path, adapters)
            continue
        removed = folder / f".{path.name}.removed.tmp"
        os.rename(path, removed)  # at once: half a checkpoint must not keep a checkpoint's name
        shutil.rmtree(removed)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left behind while it wrote or pruned a checkpoint."""
    remove_leftovers(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        if _LEFTOVER.fullmatch(path.name):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path)


def load_training_state(checkpoint: Path) -> dict[str, Any]:
    """Return the `state` that `save_checkpoint` was given, and the fingerprints of the files next to it.

    Raises:
        TrainingError: The file is missing or damaged.
    """
    path = checkpoint / STATE_FILE
    try:
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise TrainingError(f"{path} cannot be read ({_in_few_words(error)}).") from error
    if not isinstance(state, dict):
        raise TrainingError(f"{path} does not hold the state of a training, but a {type(state).__name__}.")
    return state


def _in_few_words(error: BaseException) -> str:
    """Return why a file could not be read, without the paragraphs that torch adds for programmers."""
    said = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in said:
        return "it is not a file that vla wrote, or is damaged"
    if isinstance(error, RuntimeError):
        return "it is damaged, or ends too early"
    return textwrap.shorten(said, 200, placeholder=" ...") or "it is empty, or ends too early"


def _check_sums(path: Path) -> None:
    """Compare the checksums that torch writes into a file, but does not look at when it reads it."""
    if not zipfile.is_zipfile(path):
        return  # torch says what is wrong with it
    with zipfile.ZipFile(path) as parts:
        damaged = parts.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of its part {damaged} is not that of its bytes")


def check_step(checkpoint: Path, state: dict[str, Any]) -> None:
    """Raise unless a checkpoint's name, its training state and its other files are of one step.

    Raises:
        TrainingError: They are of several, or a file was changed since.
    """
    if state["step"] != checkpoint_step(checkpoint):
        raise TrainingError(
            f"{checkpoint / STATE_FILE} is that of another checkpoint: of step {state['step']}."
        )
    check_fingerprints(checkpoint, state)


def is_as_saved(checkpoint: Path) -> bool:
    """Return whether it is certain that a checkpoint's files are those that were saved."""
    try:
        state = load_training_state(checkpoint)
        check_step(checkpoint, state)
    except (TrainingError, LookupError):
        return False
    return FINGERPRINTS in state


def _write_error(error: BaseException) -> BaseException:
    """Return the system's own error behind what a library made of it, if there is one."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, OSError):
        behind = behind.__context__
    return behind or error


def is_copied_checkpoint(folder: Path) -> bool:
    """Whether a folder next to a run's checkpoints is a copy of one, as those make who follow links."""
    files = _fingerprints(folder)
    return any(_fingerprints(one) == files for one in list_checkpoints(folder.parent))


def _fingerprints(folder: Path) -> dict[str, str]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: fingerprint(path) for name, path in found.items() if name != ADAPTERS_FILE}


def point_last_at(checkpoint: Path) -> None:
    """Let `last` be the name of a checkpoint, in one step; a copy of one under that name is removed."""
    link, last = checkpoint.parent / f".{LAST}.tmp", checkpoint.parent / LAST
    if last.is_dir() and not last.is_symlink() and is_copied_checkpoint(last):
        removed = checkpoint.parent / f".{LAST}.removed.tmp"
        os.rename(last, removed)
        shutil.rmtree(removed)
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoint.name, target_is_directory=True)
    os.replace(link, checkpoint.parent / LAST)
