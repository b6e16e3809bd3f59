"""Numbers that are given, checked."""

from __future__ import annotations

import math
import operator
from typing import Any

from vla_client.errors import ConfigError


def whole(value: Any, name: str, at_least: int) -> int:
    """Return a whole number, or raise `ConfigError`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < at_least:
        raise ConfigError(f"{name} must be a whole number of at least {at_least}, got {value!r}.")
    return number


def seconds(value: Any, name: str, at_least: float = 0.0) -> float:
    """Return a finite number of seconds, or raise `ConfigError`."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= at_least):
        raise ConfigError(f"{name} must be a finite number of seconds of at least {at_least}, got {value!r}.")
    return number
