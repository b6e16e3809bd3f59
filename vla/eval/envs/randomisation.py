"""Domain randomisation as data: how far cameras, light, colours and masses of a simulator are varied.

A range is drawn from anew for every episode, from the episode's seed. Two equal numbers are a fixed change,
such as a camera that stands elsewhere than it did in training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml

from vla.errors import ConfigError, did_you_mean
from vla.plain_yaml import load_yaml

Range = tuple[float, float]

_LIMITS: dict[str, Range] = {
    "azimuth": (-180.0, 180.0),
    "elevation": (-45.0, 45.0),
    "distance": (0.5, 2.0),
    "shift": (-0.5, 0.5),
    "light": (0.1, 3.0),
    "colours": (0.0, 3.0),
    "masses": (0.1, 10.0),
}
"""Between what a range may lie."""


@dataclass(frozen=True)
class Scenery:
    """What was drawn for one episode.

    Attributes:
        azimuth: Degrees that cameras are turned by around the table.
        elevation: Degrees that they are raised by.
        distance: Factor of their distance.
        shift: By how much what they look at is moved, `[3]`, metres; of Detour, table units.
        light: Factor of all light.
        masses: Factor of the masses of loose objects.
    """

    azimuth: float
    elevation: float
    distance: float
    shift: np.ndarray
    light: float
    masses: float
    _colours: Range
    _seed: int

    def colours(self, things: int) -> np.ndarray:
        """Return a factor for each colour of each thing, `[things, 3]`."""
        return np.random.default_rng([self._seed, 1]).uniform(*self._colours, (things, 3))


@dataclass(frozen=True)
class Randomisation:
    """Ranges; by default nothing is varied.

    Args:
        azimuth: Degrees that cameras are turned by around the table.
        elevation: Degrees that they are raised by.
        distance: Factor of their distance from what they look at.
        shift: By how much what they look at is moved along each axis, metres; of Detour, table units.
        light: Factor of all light.
        colours: Factor of each colour of each thing; of Detour, of the whole image.
        masses: Factor of the masses of loose objects; Detour has none.

    Raises:
        ConfigError: A range is not two numbers in order, or lies beyond what makes sense.
    """

    azimuth: Range = (0.0, 0.0)
    elevation: Range = (0.0, 0.0)
    distance: Range = (1.0, 1.0)
    shift: Range = (0.0, 0.0)
    light: Range = (1.0, 1.0)
    colours: Range = (1.0, 1.0)
    masses: Range = (1.0, 1.0)

    def __post_init__(self) -> None:
        for one in fields(self):
            low, high = _LIMITS[one.name]
            given = getattr(self, one.name)
            numbers = isinstance(given, list | tuple) and [
                float(number) for number in given if isinstance(number, int | float) and number is not True
            ]
            if (
                not numbers
                or len(numbers) != 2
                or len(given) != 2
                or not low <= numbers[0] <= numbers[1] <= high
            ):
                raise ConfigError(
                    f"The randomisation's {one.name} is a range [from, to] within {low:g} to {high:g}, "
                    f"got {given!r}."
                )
            object.__setattr__(self, one.name, tuple(numbers))

    @classmethod
    def of(cls, given: "Mapping[str, Any] | Randomisation | None") -> Self:
        """Return what a mapping of names to ranges says; None varies nothing.

        Raises:
            ConfigError: It is something else, or a name is unknown.
        """
        if isinstance(given, cls):
            return given
        if given is None:
            return cls()
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"A randomisation is a mapping of {', '.join(_LIMITS)} to ranges, got {given!r}."
            )
        for name in given:
            if name not in _LIMITS:
                raise ConfigError(
                    f"A randomisation has no '{name}', only {', '.join(_LIMITS)}."
                    f"{did_you_mean(name, _LIMITS)}"
                )
        return cls(**given)

    @property
    def is_none(self) -> bool:
        """Whether nothing is varied."""
        return self == type(self)()

    def draw(self, seed: int) -> Scenery:
        """Return what an episode of a seed looks like."""
        random = np.random.default_rng([seed, 0])
        azimuth, elevation, distance, light, masses = (
            float(random.uniform(*one))
            for one in (self.azimuth, self.elevation, self.distance, self.light, self.masses)
        )
        shift = random.uniform(*self.shift, 3)
        return Scenery(azimuth, elevation, distance, shift, light, masses, self.colours, seed)


def read_randomisation(path: Path) -> dict[str, Any]:
    """Return what a YAML file says, checked: `{azimuth: [-10, 10], light: [0.7, 1.3]}`.

    Raises:
        ConfigError: It cannot be read, or is not one.
    """
    try:
        given = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The randomisation {path} cannot be read: {error}") from error
    if given is None:
        raise ConfigError(f"The randomisation {path} is empty: it names ranges, such as light: [0.7, 1.3].")
    try:
        Randomisation.of(given)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return dict(given)
