"""Why one process of a run has died, said by the others, which stop because of it.

    runs/cube/errors/process-1.txt      DatasetError: ... cannot be decoded ...

A process that leaves with an error writes it there first; one that loses its connection to the others reads
what they wrote. Files, because they are there whichever process dies first, whatever carried the messages
between them, and whatever becomes of it. A process that is killed leaves none.
"""

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from vla.atomic import atomic_write
from vla.errors import TrainingError, VlaError

_SHOWN = 3


class ErrorFiles:
    """Within the block, this process's error is written down, and one that others cause says theirs.

    Alone, a process writes nothing.

    Args:
        folder: Of the messages, the same for all processes; it need not exist.

    Raises:
        TrainingError: Another process has died; in place of what the communication library reports.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rank, self._world = (
            int(os.environ.get(name, alone)) for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1"))
        )

    def __enter__(self) -> Self:
        if self._world > 1:
            with suppress(OSError):
                self._file(self._rank).unlink()  # what an earlier start said
                self._folder.rmdir()  # of the last one that comes by
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception):
            return
        if is_lost_connection(error):
            raise TrainingError(f"{self._why()} The last checkpoint is whole: resume from it.") from error
        if self._world > 1:
            get_error_handler().record_exception(error)  # for the launcher, which may be on another machine
            with suppress(OSError):  # the error itself matters more
                self._folder.mkdir(parents=True, exist_ok=True)
                atomic_write(self._file(self._rank), f"{type(error).__name__}: {error}\n")

    def _file(self, rank: int) -> Path:
        return self._folder / f"process-{rank}.txt"

    def _why(self) -> str:
        said = []
        for rank in range(self._world):
            with suppress(OSError):
                said.append(f"process {rank}: {' '.join(self._file(rank).read_text().split())}")
        if not said:
            return (
                "Another process of this run has died or cannot be reached, so this one stops; the reason "
                "stands in that process's own output, if it could say one before it was killed."
            )
        more = f" (and {len(said) - _SHOWN} more)" if len(said) > _SHOWN else ""
        return f"This process stops because of another one: {'; '.join(said[:_SHOWN])}{more}."


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error comes of another process that cannot be reached."""
    if isinstance(error, VlaError):
        return False
    # gloo reports a closed connection as a plain RuntimeError that names its source file.
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))
