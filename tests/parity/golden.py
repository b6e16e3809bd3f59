"""Compare this library with what a reference implementation computed from the same checkpoint.

    python -m tests.parity.golden NAME FOLDER

FOLDER holds a checkpoint in a published format and `io.npz`, the inputs and outputs of the reference. Every
output is computed here as well, and its largest difference is printed next to its bound.

Exit status: 0 where everything lies within its bound; 1 where something does not, or where `io.npz` holds an
array that is neither an input nor compared; 2 where NAME or FOLDER cannot be used.
"""

import argparse
import os
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all that a golden needs lies in its folder

from tests.parity.goldens import flow
from tests.parity.goldens.form import Arrays, Computed, Form, GoldenError, Quantity
from vla.errors import VlaError, did_you_mean

GOLDENS: dict[str, Form] = {
    "openpi_jax_pi0": flow.openpi_jax("Pi0Policy"),
    "openpi_jax_pi05": flow.openpi_jax("Pi05Policy"),
    "lerobot_pi0": flow.lerobot("Pi0Policy"),
    "lerobot_pi05": flow.lerobot("Pi05Policy"),
}
"""Name of a system -> the form of its goldens."""


@dataclass(frozen=True)
class Verdict:
    """How one array compares.

    Attributes:
        name: Name of the array.
        ok: Whether it is as it should be.
        text: The rest of its line in the report.
    """

    name: str
    ok: bool
    text: str


def compute(name: str, folder: Path) -> tuple[Computed, Arrays]:
    """Return what this library computes of a golden, and its `io.npz`.

    Raises:
        GoldenError: There is no such system, no such folder, or the folder is not of the system's form.
        VlaError: The checkpoint in the folder does not load, or its inputs do not fit it.
    """
    if name not in GOLDENS:
        raise GoldenError(
            f"There is no golden system '{name}', only {', '.join(GOLDENS)}.{did_you_mean(name, GOLDENS)}"
        )
    if not folder.is_dir():
        raise GoldenError(f"{folder} is not a folder.")
    arrays = read_arrays(folder / "io.npz")
    computed = GOLDENS[name](folder.resolve(), arrays)
    if not computed.quantities:
        raise GoldenError(f"{folder / 'io.npz'} holds nothing to compare: {', '.join(arrays)}.")
    return computed, arrays


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an npz file.

    Raises:
        GoldenError: There is no such file, or it is not one.
    """
    if not path.is_file():
        raise GoldenError(f"{path} does not exist: a golden holds the inputs and outputs of its reference.")
    try:
        with np.load(path) as file:
            return dict(file)
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise GoldenError(f"{path} is not a readable npz file: {error}") from error


def compare(computed: Computed, arrays: Arrays) -> Iterator[Verdict]:
    """Return a verdict on every array of `io.npz` but the inputs."""
    for name, truth in arrays.items():
        if name in computed.quantities:
            yield judge(name, computed.quantities[name], truth)
        elif name not in computed.inputs:
            yield Verdict(name, False, "neither an input nor compared")


def judge(name: str, quantity: Quantity, truth: np.ndarray) -> Verdict:
    """Compare one array with the truth."""
    if truth.shape != quantity.got.shape:
        return Verdict(name, False, f"has shape {truth.shape}, computed was {quantity.got.shape}")
    counts = np.ones(truth.shape, bool) if quantity.counts is None else quantity.counts
    got, want = quantity.got[counts].astype(np.float64), truth[counts].astype(np.float64)
    if not want.size:
        return Verdict(name, False, "has no entry to compare")
    difference = np.abs(got - want)
    within = np.isfinite(difference) & (difference <= quantity.bound.allowed(want))
    ok = bool(within.all())
    part = "" if counts.all() else f"; {counts.sum()} of {counts.size} rows count"
    return Verdict(name, ok, f"largest difference {difference.max():.2e}, bound {quantity.bound}{part}")


def main(arguments: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity.golden",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help=f"the system: {', '.join(GOLDENS)}")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the golden")
    given = parser.parse_args(arguments)
    try:
        computed, arrays = compute(given.name, given.folder)
    except (GoldenError, VlaError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    verdicts = list(compare(computed, arrays))
    width = max(len(verdict.name) for verdict in verdicts)
    sys.stdout.write(f"{given.name}: {computed.subject} of {given.folder}\n")
    for verdict in verdicts:
        sys.stdout.write(f"  {'ok  ' if verdict.ok else 'FAIL'}  {verdict.name:<{width}}  {verdict.text}\n")
    failed = [verdict.name for verdict in verdicts if not verdict.ok]
    sys.stdout.write(f"FAILED: {', '.join(failed)}\n" if failed else "passed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
