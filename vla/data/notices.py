"""What a dataset leaves out, said once: a run opens a dataset several times, for training and validation."""

import functools
import logging
from collections.abc import Hashable

_log = logging.getLogger(__name__)
_told: set[Hashable] = set()


@functools.lru_cache(maxsize=4096)
def say_once(message: str) -> None:
    """Log a warning, unless this process has said it already."""
    _log.warning("%s", message)


def say_once_of(about: Hashable, message: str) -> None:
    """Log a warning, unless this process has said one of the same kind, in other words or not, about this."""
    if about not in _told:
        _told.add(about)
        say_once(message)
