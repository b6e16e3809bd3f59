"""Numbers that are given, checked."""

from __future__ import annotations

import concurrent.futures
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
    number = _number(value)
    if not (math.isfinite(number) and number >= at_least):
        raise ConfigError(f"{name} must be a finite number of seconds of at least {at_least}, got {value!r}.")
    return number


def finite(value: Any, name: str) -> float:
    """Return a finite number, or raise `ConfigError`."""
    number = _number(value)
    if not math.isfinite(number):
        raise ConfigError(f"{name} must be a finite number, got {value!r}.")
    return number


def _number(value: Any) -> float:
    """Return a number; NaN for anything else."""
    try:
        return math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def check_executor(executor: Any, clock: Any) -> None:
    """Raise `ConfigError` unless an executor, where one is given, runs calls, and a clock can be read."""
    if executor is not None and not isinstance(executor, concurrent.futures.Executor):
        raise ConfigError(f"executor must be a concurrent.futures.Executor, got a {type(executor).__name__}.")
    if not callable(clock):
        raise ConfigError(f"clock must be a function that returns seconds, got a {type(clock).__name__}.")
