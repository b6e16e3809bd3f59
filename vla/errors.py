"""Errors for people: what was wrong, with which value, where, and what to do.

Everything a user can cause derives from `VlaError`; the command line prints it as one clear line and
exits with a non-zero status. Violations of our own invariants use `assert`.
"""

import difflib
from collections.abc import Iterable


class VlaError(Exception):
    """Base class of every error that a user of vla can cause."""


class ConfigError(VlaError, ValueError):
    """A recipe, a config or a command-line argument is wrong."""


class DatasetError(VlaError, ValueError):
    """A dataset is missing, corrupt, of an unknown version, or does not hold what was asked of it."""


class ShapeError(VlaError, ValueError):
    """A tensor does not have the shape that a public function documents."""


class StatisticsError(VlaError, ValueError):
    """Normalisation statistics are missing or do not fit the data."""


class WeightsError(VlaError, ValueError):
    """A checkpoint is missing, incomplete, or does not fit the model."""


class TrainingError(VlaError, RuntimeError):
    """Training cannot continue: a non-finite loss, a folder in the way, a run that cannot be resumed."""


class MissingDependencyError(VlaError, ImportError):
    """An optional package is needed for what was asked; the message names the extra to install."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the option closest to `name`, or an empty string."""
    nearest = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""
