"""Fingerprints of a checkpoint's files, kept in its training state: files of two checkpoints are told apart.

A fingerprint is a SHA-256: of a whole file, or of a safetensors file's size, header and both ends of every
tensor, which any step of training changes. That costs milliseconds, however large the weights are; a flipped
bit in the midst of a large tensor is not looked for.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vla.errors import TrainingError
from vla.paths import is_of_finder

FINGERPRINTS = "files"
"""Key of the training state."""
_NOT_OF_THE_STEP = (
    "training_state.pt",
    "recipe.yaml",
    "versions.json",
    "README.md",
    "generation_config.json",
)
"""Files that hold the fingerprints, are compared in their own way, or are not read to resume."""
_END = 4096


def fingerprints_of(folder: Path) -> dict[str, str]:
    """Return the fingerprint of every file in a checkpoint's folder that must be of one step, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not is_of_finder(path))
    names = [path.relative_to(folder).as_posix() for path in files]
    return {name: fingerprint(folder / name) for name in names if name not in _NOT_OF_THE_STEP}


def check_fingerprints(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Raise unless a checkpoint's files are those that its training state was saved with.

    A state of an earlier version, which has no fingerprints, passes.

    Raises:
        TrainingError: A file is missing, was changed, or is of another checkpoint.
    """
    kept = state.get(FINGERPRINTS)
    if not isinstance(kept, dict):
        return
    other = [name for name, was in kept.items() if not _is_same(checkpoint / name, was)]
    if other:
        raise TrainingError(
            f"{checkpoint} is put together from several checkpoints, or was changed: its training state of "
            f"step {state.get('step')} was not saved with this {', '.join(sorted(other))}."
        )


def _is_same(path: Path, was: str) -> bool:
    try:
        return fingerprint(path) == was
    except OSError:
        return False


def fingerprint(path: Path) -> str:
    """Return the fingerprint of a file."""
    with open(path, "rb") as file:
        spans = _ends_of_tensors(file) if path.suffix == ".safetensors" else None
        file.seek(0)
        if spans is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(path.stat().st_size).encode())
        for start, stop in spans:
            file.seek(start)
            digest.update(file.read(stop - start))
    return digest.hexdigest()


def _ends_of_tensors(file: BinaryIO) -> list[tuple[int, int]] | None:
    """Return the parts of a safetensors file to look at; None where its header cannot be read."""
    data = 8 + int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(data - 8))
        offsets = [fields["data_offsets"] for name, fields in header.items() if name != "__metadata__"]
        tensors = sorted((data + begin, data + end) for begin, end in offsets)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError):
        return None
    spans = [(0, data)]
    for begin, end in tensors:
        spans += [(begin, min(begin + _END, end)), (max(begin + _END, end - _END), end)]
    return [(start, stop) for start, stop in spans if start < stop]
