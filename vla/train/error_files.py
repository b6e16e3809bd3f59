"""The reason why one process of a run has died, reported by the others, which stop because of it.

    runs/cube/errors/process-1.txt      DatasetError: ... cannot be decoded ...

A process that ends with an error writes it to its file first; one that loses its connection to the others
reads theirs. Files work whichever process dies first and whichever library connects them. A process that is
killed leaves none.
"""

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from vla.atomic import atomic_write
from vla.errors import TrainingError, VlaError
from vla.train.launch import Launch

_SHOWN = 3


class ErrorFiles:
    """Writes down this process's error within the block, and reports those of others that cause one here.

    A single process writes nothing.

    Args:
        folder: Folder of the messages, the same for all processes; it need not exist.
        launch: This process among the others.

    Raises:
        TrainingError: Another process has died; it replaces the error of the communication library.
    """

    def __init__(self, folder: Path, launch: Launch) -> None:
        self._folder, self._rank, self._world = folder, launch.rank, launch.world
        self._had_place = False

    def __enter__(self) -> Self:
        self._had_place = self._folder.parent.is_dir()
        if self._world > 1:
            with suppress(OSError):
                self._file(self._rank).unlink()  # from an earlier start
                self._folder.rmdir()  # succeeds in the last process, when it is empty
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception):
            return
        if is_lost_connection(error):
            raise TrainingError(f"{self._reason()} The last checkpoint is whole: resume from it.") from error
        if self._world > 1:
            if not isinstance(error, VlaError):  # of those, the launcher would print a traceback
                get_error_handler().record_exception(error)  # for it, since it may be on another machine
            with suppress(OSError):  # the error itself matters more
                # A run's folder that was moved away must not come back.
                self._folder.mkdir(parents=not self._had_place, exist_ok=True)
                atomic_write(self._file(self._rank), f"{type(error).__name__}: {error}\n")

    def _file(self, rank: int) -> Path:
        return self._folder / f"process-{rank}.txt"

    def _reason(self) -> str:
        reasons = []
        for rank in range(self._world):
            with suppress(OSError):
                reasons.append(
                    f"process {rank}: {' '.join(self._file(rank).read_text(encoding='utf-8').split())}"
                )
        if not reasons:
            return (
                "Another process of this run has died or cannot be reached, so this one stops; the reason "
                "is in that process's own output, unless it was killed."
            )
        more = f" (and {len(reasons) - _SHOWN} more)" if len(reasons) > _SHOWN else ""
        return f"This process stops because of another one: {'; '.join(reasons[:_SHOWN])}{more}."


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error is caused by another process that cannot be reached."""
    if isinstance(error, VlaError):
        return False
    # gloo reports a closed connection as a plain RuntimeError that names its source file.
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))
