"""A policy's files put in the place of an earlier one's, in a folder that holds other things as well.

Everything is first written into a folder of its own inside the target, `.vla_saved`, which appears complete
or not at all; until then, nothing else in the target changes. Then files are moved to their places, the one
that makes a folder a checkpoint last. Where that is interrupted (it takes milliseconds), the next to
open the folder, or to save into it, completes the move: `finish_save`.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vla.atomic import SaveError, atomic_folder, atomic_write, one_at_a_time, read_json, remove_empty
from vla.transforms.base import PIPELINE_FILE
from vla.transforms.named_pipelines import PIPELINES_FOLDER
from vla.transforms.statistics import STATISTICS_FILE
from vla.weights.files.row_shards import SHARDS, has_row_shards
from vla.weights.formats import ADAPTER_FILES, BASE_FILE
from vla.weights.run_folder import ADAPTERS_FILE, adapters_on, has_weights, run_of

READY = ".vla_saved"
_MOVES = "moves.json"
_MARKERS = ("config.json", BASE_FILE)
"""Files without which a folder is not a checkpoint: the first to go, the last to come."""
_TRAINING_STATE = "training_state.pt"

_OF_TRAINER = re.compile(r"checkpoint-\d+")
"""What the Trainer calls a checkpoint."""

_OF_DATASETS = ("meta/info.json", "dataset_info.json", "dataset_dict.json")
"""Files by which LeRobot's datasets, and those that `datasets` saved, are recognised."""

_OWN = re.compile(
    r"config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|pipeline\.json"
    r"|statistics\.json|policy_(pre|post)processor.*"
)
"""Files of a checkpoint that its successor need not overwrite; left where they are, they would make the
folder two checkpoints at once."""


@contextmanager
def replacing_checkpoint(target: Path | str) -> Iterator[Path]:
    """Yield a new folder whose files take the place of a checkpoint's in `target` when the block ends well.

    Files that are not a checkpoint's stay. If anything fails, `target` is as it was.

    Args:
        target: Where the checkpoint goes; made where absent.

    Raises:
        SaveError: `target` is a file, a dataset, a training run, a checkpoint that one resumes from, the base
            of adapters, or holds a whole policy where an adapter is to be saved; or what was written is not a
            checkpoint; or the disk is full or read-only.
    """
    target = Path(target)
    refuse_run(target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        with atomic_folder(target) as folder:
            yield folder
            _check_whole(folder, target)
        return
    check_replaceable(target)
    finish_save(target)
    with atomic_folder(target / READY) as made:
        yield made
        new = [path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()]
        check_replaceable(target, is_adapter=BASE_FILE in new)
        _check_whole(made, target)
        old = [name for name in _own_files(target) if name not in new]
        atomic_write(made / _MOVES, json.dumps({"new": new, "old": old}))
    finish_save(target)


@contextmanager
def leaving_no_empty_checkpoint(target: Path | str) -> Iterator[None]:
    """Remove the empty folder that `transformers`' Trainer has made for a save, where nothing is saved.

    It would look for a checkpoint there when it resumes, and not in the one before, which is whole.
    """
    try:
        yield
    finally:
        if _OF_TRAINER.fullmatch(Path(target).name):
            remove_empty([Path(target)])


def _check_whole(made: Path, target: Path) -> None:
    """Raise `SaveError` where a new folder holds neither config and weights nor an adapter."""
    if (made / "config.json").is_file() and has_weights(made):
        return
    if not all((made / name).is_file() for name in ADAPTER_FILES[1:]):
        raise SaveError(
            f"What was to be saved into {target} has no weights or no config.json, so that it could not be "
            "opened. Nothing was changed."
        )


def refuse_run(target: Path | str) -> Path:
    """Return a place for a policy; raise `SaveError` where it is a training run's, or among its checkpoints.

    The run's folder stands for its newest checkpoint; with a policy of its own it would stand for that.
    """
    target = Path(target)
    if target.name.startswith(".") and target.suffix == ".tmp":  # what becomes a checkpoint of the run
        return target
    if (run := run_of(target)) is not None and not (target / _TRAINING_STATE).exists():
        what = "is" if run == target.absolute() else f"belongs to {run},"
        raise SaveError(
            f"{target} {what} the folder of a training run, which stands for its newest checkpoint: choose "
            f"another folder for the policy, such as {run.with_name(run.name + '_policy')}."
        )
    return target


def check_replaceable(target: Path, is_adapter: bool = False) -> None:
    """Raise `SaveError` where a policy cannot be saved into `target`, whatever it is; changes nothing.

    Args:
        target: Where the policy would go.
        is_adapter: Whether an adapter is to be saved, rather than a whole policy.
    """
    if target.exists() and not target.is_dir():
        raise SaveError(f"{target} is a file; give a folder to save the policy into.")
    refuse_run(target)
    if (dataset := next((name for name in _OF_DATASETS if (target / name).exists()), None)) is not None:
        raise SaveError(
            f"{target} holds a dataset ({dataset}), which would no longer be opened as one: choose another "
            "folder for the policy."
        )
    if (target / _TRAINING_STATE).exists():
        raise SaveError(
            f"{target} is a checkpoint that a training run resumes from, and other weights would break it: "
            "choose another folder."
        )
    if is_adapter and (target / "config.json").exists():
        raise SaveError(
            f"{target} holds a whole policy, which an adapter does not replace (it may be the adapter's "
            "own base): choose another folder."
        )
    if adapters := adapters_on(target):
        raise SaveError(
            f"{target} is the base of adapters, which are of no use without it: {adapters}. Choose another "
            f"folder, or remove {target / ADAPTERS_FILE} if none of them is needed."
        )


def finish_save(target: Path) -> None:
    """Complete a save that was interrupted once all of it was on the disk; without one, do nothing.

    Raises:
        SaveError: The files cannot be moved.
    """
    ready = target / READY
    if not ready.is_dir():
        return
    with one_at_a_time(ready):
        if not ready.is_dir():  # another process was faster
            return
        try:
            _move(ready, target)
        except OSError as error:
            raise SaveError(
                f"The policy that was saved last into {target} lies in {ready}, complete, but its files "
                f"cannot be moved to their places: {error}. Save or open it again once they can."
            ) from error


def _move(ready: Path, target: Path) -> None:
    """Move what still waits; called again after an interruption, it takes up where it was."""
    if (ready / _MOVES).exists():
        moves = read_json(ready / _MOVES, SaveError)
        waiting = [name for name in moves["new"] if (ready / name).exists()]
        for name in [name for name in _MARKERS if name in waiting] + moves["old"]:
            (target / name).unlink(missing_ok=True)
        for name in sorted(waiting, key=lambda name: name in _MARKERS):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(ready / name, target / name)
        (ready / _MOVES).unlink()
    shutil.rmtree(ready)


def _own_files(target: Path) -> list[str]:
    """Return the names of a checkpoint's files in a folder, those by which it is recognised first."""
    names = [path.name for path in target.iterdir() if path.is_file()]
    own = sorted((name for name in names if _OWN.fullmatch(name)), key=lambda name: name not in _MARKERS)
    if BASE_FILE in names:  # without it, the adapter is another library's
        own = [*(name for name in ADAPTER_FILES if name in names), *own]
    for path in target.glob(f"{PIPELINES_FOLDER}/*/{PIPELINE_FILE}"):
        own += [f"{PIPELINES_FOLDER}/{path.parent.name}/{name}" for name in (PIPELINE_FILE, STATISTICS_FILE)]
    if has_row_shards(target):
        own += [f"{SHARDS}/{path.name}" for path in (target / SHARDS).iterdir() if path.is_file()]
    return own
