"""What the form of a golden says: which arrays are inputs, and what this library computes for the others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]


class GoldenError(Exception):
    """The folder or the name cannot be used: nothing was compared."""


@dataclass(frozen=True)
class Bound:
    """How far a value may lie from the truth x: `max(absolute, relative * |x| ** power)`, entry by entry."""

    absolute: float
    relative: float = 0.0
    power: float = 1.0

    def allowed(self, truth: np.ndarray) -> np.ndarray:
        """Return the largest difference that is allowed at every entry."""
        return np.maximum(self.absolute, self.relative * np.abs(truth) ** self.power)

    def __str__(self) -> str:
        if not self.relative:
            return f"{self.absolute:.2g}"
        power = "" if self.power == 1 else f"^{self.power:g}"
        return f"max({self.absolute:.2g}, {self.relative:.2g} |x|{power})"


@dataclass(frozen=True)
class Quantity:
    """One array as this library computes it.

    Attributes:
        got: Its value, in the shape that the array of `io.npz` should have.
        bound: How far it may lie from it.
        counts: bool, over the leading axes of `got`: entries that have a meaning; None: all of them.
    """

    got: np.ndarray
    bound: Bound
    counts: np.ndarray | None = None


@dataclass(frozen=True)
class Computed:
    """What this library computes from a golden.

    Attributes:
        subject: What was loaded, for the report's first line.
        inputs: Names of the arrays that are inputs.
        quantities: The arrays that were computed; those in neither are a failure.
    """

    subject: str
    inputs: frozenset[str]
    quantities: dict[str, Quantity]


Form = Callable[[Path, Arrays], Computed]
"""Loads the checkpoint in a folder and computes every array of its `io.npz` that the form knows.

Raises `GoldenError` or `vla.errors.VlaError` where the folder is not of this form.
"""


def need(arrays: Arrays, name: str) -> np.ndarray:
    """Return an input.

    Raises:
        GoldenError: It is not there.
    """
    if name not in arrays:
        raise GoldenError(f"io.npz has no array '{name}', which is an input of this form.")
    return arrays[name]
