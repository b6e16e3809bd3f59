"""Errors for people: what was wrong, with which value, where, and what to do.

Those that a robot's computer can meet stand here; `vla.errors` has these and the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VlaError(Exception):
    """Base class of every error that a user of vla can cause."""


class ConfigError(VlaError, ValueError):
    """A recipe, a config or a command-line argument is wrong."""


class ShapeError(VlaError, ValueError):
    """A tensor does not have the shape that a public function documents."""


class ObservationError(ShapeError):
    """What a robot measured cannot be acted on: a key is missing, or a value is not what it should be."""


class ActionError(VlaError, ArithmeticError):
    """A policy answered with actions that no robot can execute."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the option closest to `name`, or an empty string.

    That is one below a section, `a.name`, where there is such a one.
    """
    options = list(options)
    below = [one for one in options if one.endswith(f".{name}")]
    nearest = below or difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""
