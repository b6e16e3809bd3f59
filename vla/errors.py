"""Errors for people: what was wrong, with which value, where, and what to do.

Everything a user can cause derives from `VlaError`; the command line prints it as one clear line and
exits with a non-zero status. Violations of our own invariants use `assert`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_client.errors import (
    ActionError,
    CodingError,
    ConfigError,
    DeadlineError,
    ObservationError,
    PastError,
    ServerError,
    ServerLostError,
    ShapeError,
    VlaError,
    did_you_mean,
)

__all__ = [
    "ActionError",
    "CodingError",
    "ConfigError",
    "DatasetError",
    "DeadlineError",
    "MissingDependencyError",
    "ObservationError",
    "PastError",
    "ServerError",
    "ServerLostError",
    "ShapeError",
    "StatisticsError",
    "TrainingError",
    "VlaError",
    "WeightsError",
    "did_you_mean",
    "gone",
    "in_words",
    "is_out_of_memory",
    "misread",
    "remedied",
    "remedy",
    "run_checkpoint",
]

_RUN_CHECKPOINT = re.compile(r"step-(\d{6,})")
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")


class DatasetError(VlaError, ValueError):
    """A dataset is missing, corrupt, of an unknown version, or does not hold what was asked of it."""


class StatisticsError(VlaError, ValueError):
    """Normalisation statistics are missing or do not fit the data."""


class WeightsError(VlaError, ValueError):
    """A checkpoint is missing, incomplete, or does not fit the model."""


class TrainingError(VlaError, RuntimeError):
    """Training cannot continue: a non-finite loss, a folder in the way, a run that cannot be resumed."""


class SimulationError(VlaError, RuntimeError):
    """A simulator, or its expert, raised an error of its own."""


class MissingDependencyError(VlaError, ImportError):
    """An optional package is needed for what was asked; the message names the extra to install."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception, of Python or of torch, says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _NO_MEMORY)


@contextmanager
def misread(what: Any, error: type[VlaError]) -> Iterator[None]:
    """Turn what Python raises over values of another kind than expected into a sentence that names the file.

    Args:
        what: The file that the block reads, or what it interprets.
        error: What to raise instead.
    """
    try:
        yield
    except VlaError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as cause:
        raise error(f"{what} holds something of another kind than expected ({in_words(cause)}).") from cause


def in_words(cause: BaseException) -> str:
    """Return what Python says of a field that is missing or unknown, without its words for arguments."""
    said = " ".join(str(cause).split()).rstrip(".")
    if unknown := re.search(r"unexpected keyword argument ('[^']+')", said):
        return f"{unknown[1]} is not known there"
    if missing := re.search(r"missing \d+ required .*?arguments?: (.+)", said):
        return f"{missing[1]} is missing"
    return f"{said} is missing" if isinstance(cause, KeyError) else said or type(cause).__name__


def remedy(path: Path) -> str:
    """Return what to do about a damaged file or folder: "download it again", or what a run can do.

    Args:
        path: The file or folder. In a checkpoint of a run (`checkpoints/step-000200/`), the older checkpoint
            to resume from is named: nothing of it was ever downloaded.
    """
    checkpoint = run_checkpoint(path)
    if checkpoint is None:
        return "download it again"
    older = [
        other
        for other in checkpoint.parent.iterdir()
        if _RUN_CHECKPOINT.fullmatch(other.name) and other.is_dir() and _step(other) < _step(checkpoint)
    ]
    if not older:
        return f"there is no older checkpoint in {checkpoint.parent}, so the run must be started again"
    newest = max(older, key=_step)
    return f"remove {checkpoint} to resume from {newest}, or use that one"


def run_checkpoint(path: Path) -> Path | None:
    """Return the run's checkpoint that a path lies in, itself included; None where it lies in none."""
    resolved = path.resolve()
    for folder in (resolved, *resolved.parents):
        if _RUN_CHECKPOINT.fullmatch(folder.name) and folder.parent.name == "checkpoints":
            return folder
    return None


def gone(path: Path) -> str:
    """Return what to say of a checkpoint that its run has removed, or never had; empty for any other path.

    Args:
        path: It, or a file in it.
    """
    checkpoint = run_checkpoint(path)
    if checkpoint is None or checkpoint.exists() or not checkpoint.parent.is_dir():
        return ""
    return (
        f"{checkpoint} is not there, or no longer: a run that trains removes its older checkpoints "
        "(train.keep_last). Give the run's folder, which stands for the newest, or one that is there."
    )


_IS_AS_IT_WAS = "and the model is as it was"
"""Ends messages about a checkpoint that is whole once something else is moved away."""


@contextmanager
def remedied(folder: Path) -> Iterator[None]:
    """Let what is wrong with a run's checkpoint say which older one is there, unless it says so itself."""
    try:
        yield
    except MissingDependencyError:
        raise
    except OSError as error:
        if said := gone(folder):
            raise WeightsError(said) from error
        raise
    except VlaError as error:
        if said := gone(folder):
            raise type(error)(said) from error
        if run_checkpoint(folder) is None or remedy(folder) in str(error) or _IS_AS_IT_WAS in str(error):
            raise
        said = remedy(folder)
        raise type(error)(f"{error} If it is damaged: {said}.") from error


def _step(checkpoint: Path) -> int:
    match = _RUN_CHECKPOINT.fullmatch(checkpoint.name)
    assert match, checkpoint
    return int(match[1])
