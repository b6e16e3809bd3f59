"""What ends a run from below, told in one line: memory that ran out, or a process that reads data killed."""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vla.errors import TrainingError, VlaError
from vla.fast.programs import compiler_errors
from vla.train.recipe import Recipe

_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (?P<pid>[\d, ]+)\)(?: is killed by signal: (?P<by>[\w ]+))?"
)
_SHARED = ("shared memory", "Bus error", "/torch_", "shm")
_CPU_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "not enough memory", "Caught MemoryError")


class StepMemoryError(TrainingError):
    """The device or the machine has no memory left for a step."""


class CompilerError(TrainingError):
    """`torch.compile` cannot compile what the recipe asks it to."""


class DataWorkerError(TrainingError):
    """A process that reads data was killed, or cannot be started or talked to."""


def is_lost_worker(error: BaseException) -> bool:
    """Return whether an error is torch's report that a data worker has died, whatever it interrupted."""
    return any(isinstance(one, RuntimeError) and _WORKER.search(str(one)) for one in chain_of(error))


def explained(error: BaseException, recipe: Recipe, step: int) -> TrainingError | None:
    """Return what ended step `step` as an error for people; None where it is something else.

    Args:
        error: What was raised.
        recipe: The run's recipe, whose values are named.
        step: The step that was not finished, counted from 1; 0 before the first.
    """
    if isinstance(error, VlaError):
        return None
    when = f"Step {step}" if step else "Setting up"
    if is_lost_worker(error) or _is_full_shared_memory(error):
        return DataWorkerError(f"{when} was not finished: {_about_worker(error, recipe)}")
    if isinstance(error, ConnectionError | EOFError) and recipe.data.num_workers:
        return DataWorkerError(f"{when} was not finished: {_about_worker(error, recipe)}")
    if recipe.train.compile and (said := _of_compiler(error)) is not None:
        return CompilerError(
            f"{when} was not finished: torch.compile failed ({said}). Leave train.compile out (now "
            f"{recipe.train.compile}): the losses are the same without it."
        )
    if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE):
        return DataWorkerError(
            f"{when} was not finished: the system refuses more processes, memory or open files "
            f"({error.strerror}). Lower data.num_workers (now {recipe.data.num_workers}) or data.open_videos "
            f"(now {recipe.data.open_videos})."
        )
    on_cpu = isinstance(error, MemoryError) or any(part in str(error) for part in _CPU_MEMORY)
    if isinstance(error, torch.OutOfMemoryError) or on_cpu:
        train, where = recipe.train, "the machine" if on_cpu else "the device"
        return StepMemoryError(
            f"{when} ran out of memory on {where}, at train.batch_size={train.batch_size}, "
            f"activation_checkpointing={train.activation_checkpointing}. A smaller batch with more "
            "train.accumulation learns the same; train.activation_checkpointing=all, policy.adapter and "
            "train.optimizer=adamw8bit need less. `vla info CHECKPOINT --memory` predicts what each takes."
        )
    return None


@contextmanager
def explaining(recipe: Recipe) -> Iterator[None]:
    """Say in one line what ends the set-up of a run from below; see `explained`."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError, EOFError) as error:
        if (told := explained(error, recipe, 0)) is None:
            raise
        raise told from error


@contextmanager
def rescued(
    recipe: Recipe, step: Callable[[], int], save: Callable[[], str], predict: Callable[[], str | None]
) -> Iterator[None]:
    """Say in one line what ends the steps of a run from below, and save what was finished.

    Args:
        recipe: The run's recipe.
        step: Returns the steps that are done.
        save: Saves them where that is possible; returns a sentence about what can be resumed from.
        predict: Returns a sentence about the memory that training was predicted to take, or None.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError, EOFError) as error:
        told = explained(_with_what_is_due(error), recipe, step() + 1)
        if told is None:
            raise
        predicted = predict() if isinstance(told, StepMemoryError) else None
        raise type(told)(" ".join(filter(None, (str(told), predicted, save())))) from error


def _with_what_is_due(error: Exception) -> Exception:
    """Return what torch says of a killed worker, where only the broken connection to it was seen so far.

    Its signal handler raises in whatever runs when the signal arrives; without a wait, that may be anything.
    """
    if isinstance(error, ConnectionError | EOFError):
        try:
            time.sleep(1)
        except RuntimeError as due:
            return due
    return error


def _of_compiler(error: BaseException) -> str | None:
    """Return in a line what the compiler said, or None where the error is not the compiler's."""
    if (found := next((one for one in chain_of(error) if isinstance(one, compiler_errors())), None)) is None:
        return None
    lines = [line.strip() for line in str(getattr(found, "inner_exception", found)).splitlines()]
    return next((line.rstrip(".") for line in lines if line), type(found).__name__)


def _about_worker(error: BaseException, recipe: Recipe) -> str:
    workers = f"data.num_workers (now {recipe.data.num_workers})"
    text = " ".join(str(one) for one in chain_of(error))
    if any(sign in text for sign in _SHARED):
        size = shutil.disk_usage("/dev/shm").total / 1e9 if os.path.isdir("/dev/shm") else 0
        return (
            f"a data worker found no room in shared memory (/dev/shm, {size:.3g} GB in all). Give it more "
            f"(docker run --shm-size=8g), or lower {workers}; 0 needs none."
        )
    found = [(one["pid"], one["by"]) for one in _WORKER.finditer(text)]
    pid, by = next((one for one in found if one[1]), found[0] if found else (None, None))
    why = f"was killed by a signal ({by})" if by else "ended unexpectedly"
    who = "a data worker" if pid is None else f"data worker {pid}"
    return (
        f"{who} {why}. Most often the machine is out of memory (`dmesg` says so): lower "
        f"{workers}, data.open_videos or train.batch_size, or leave data.cache at none."
    )


def _is_full_shared_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "shared memory" in text or ("/torch_" in text and "No space left" in text)
    )


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that it comes of."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:  # some libraries make a circle of it
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__
