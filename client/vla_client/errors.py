"""Errors for people: what was wrong, with which value, where, and what to do.

Those that a robot's computer can meet stand here; `vla.errors` has these and the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_ALIKE = 0.6
"""Share of letters, in order, from which on one name may be a misspelling of another."""


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


class CodingError(VlaError, ValueError):
    """A message cannot be written, or one that arrived is not what either coding allows."""


class ServerError(VlaError, RuntimeError):
    """A policy server answered with an error, or with something that is not an answer.

    Attributes:
        kind: What kind of error a vla server calls it ("busy", "internal"); None where it does not say.
        details: All that the server said: a server of openpi sends the trace of its error.
    """

    def __init__(self, message: str, *, kind: str | None = None, details: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.details = message if details is None else details


class ServerLostError(VlaError, ConnectionError):
    """A policy server cannot be reached, refuses the connection, or has gone away."""


class DeadlineError(VlaError, TimeoutError):
    """A policy or its server did not answer in time."""


class PastError(VlaError, RuntimeError):
    """A policy that reads frames of the past was not shown all of them: another episode has to begin."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the option closest to `name`, or an empty string.

    That is one below a section, `a.name`, where there is such a one. None is closer than far: of names with
    sections, the last parts alone must be alike as well.
    """
    options = list(options)
    below = [one for one in options if one.endswith(f".{name}")]
    last = _last(name)
    alike = [one for one in options if difflib.SequenceMatcher(None, _last(one), last).ratio() >= _ALIKE]
    nearest = below or difflib.get_close_matches(name, alike, n=1, cutoff=_ALIKE)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""


def _last(name: str) -> str:
    """Return the last part of a name with sections; of an option, its name without dashes."""
    return name.strip("-").rpartition(".")[2].lower()
