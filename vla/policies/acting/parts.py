"""What an observation brings that was not meant so: a state in parts, a camera that training did not have."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vla.types import IMAGE_PREFIX, STATE_KEY

logger = logging.getLogger(__name__)

SEPARATORS = re.compile("[_/]")
"""What stands for the dots of a key elsewhere."""


def joining_hint(
    observation: Mapping[str, Any], unread: Collection[str], width: int | None, names: Sequence[str]
) -> str:
    """Return a sentence about joining what can only together be the state; empty where nothing is.

    These are vectors that are narrower than the state: those below its own key (`observation.state.arm`),
    else all, where they have its width together.

    Args:
        observation: What lacks the state.
        unread: Its keys that nothing reads.
        width: Values in the state; None where that is not known.
        names: Names of the state's dimensions, empty where they are not known.
    """
    vectors = {
        key: size
        for key in observation
        if key in unread and not key.startswith(IMAGE_PREFIX[:-1])
        if (size := _length(observation[key])) and (width is None or size < width)
    }
    parts = [key for key in vectors if SEPARATORS.sub(".", key.casefold()).startswith(f"{STATE_KEY}.")]
    if len(parts) < 2 and (width is None or not parts):
        parts = list(vectors) if len(vectors) > 1 and sum(vectors.values()) == width else []
    if not parts:
        return ""
    order = f" ({', '.join(names)})" if names else ""
    what = "is a part" if len(parts) == 1 else "are parts"
    return (
        f" If {' and '.join(parts)} {what} of the state, join the columns that it was trained on, in "
        f"their order{order}, as '{STATE_KEY}'."
    )


def _length(value: Any) -> int:
    """Return how many numbers a number or vector holds; 0 for all else."""
    if isinstance(value, torch.Tensor):
        return value.numel() if value.ndim < 2 and not value.is_complex() else 0
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # ragged, or its own conversion failed
        return 0
    return array.size if array.ndim < 2 and array.dtype.kind in "fiu" else 0


def warn_of_untrained(
    observation: Mapping[str, Any], slots: Mapping[str, str], trained: Collection[str], told: set[str]
) -> None:
    """Say once of each image that it is read though this robot's training had none: actions depend on it.

    Args:
        observation: May have it.
        slots: Camera slot by every name under which an image is taken.
        trained: Slots that the robot was trained with; empty where that is not known.
        told: Keys of which something was said; grows.
    """
    for name, slot in slots.items():
        key = IMAGE_PREFIX + name
        if trained and slot not in trained and key in observation and key not in told:
            told.add(key)
            logger.warning(
                "The observation's '%s' is read, but this robot was trained with %s alone: leave it out, "
                "unless the base knows this camera.",
                key,
                ", ".join(sorted(trained)),
            )
