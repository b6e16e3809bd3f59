"""What a dataset leaves out, said once: a run opens a dataset several times, for training and validation."""

import functools
import logging

_log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=4096)
def say_once(message: str) -> None:
    """Log a warning, unless this process has said it already."""
    _log.warning("%s", message)
