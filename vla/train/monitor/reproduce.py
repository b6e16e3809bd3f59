"""`reproduce.json`: what is needed to repeat a run, and to trace its weights back to their source.

    {"starts": [{"step": 0, "time": ..., "command": [...], "recipe": {...}, "versions": {...},
                 "git": {"commit": ..., "is_dirty": ...} or null, "datasets": {path: fingerprint},
                 "revisions": {path: commit}, "engine": "ddp", "processes": 2, "device": ...}, ...]}

The entry of the first start never changes; each resumption appends its own.
"""

import hashlib
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vla.atomic import atomic_write
from vla.errors import TrainingError
from vla.train.recipe import Recipe

logger = logging.getLogger(__name__)

PACKAGES = ("vla", "torch", "transformers", "accelerate", "numpy", "peft", "deepspeed", "bitsandbytes")
"""Whose versions are written down, where they are installed."""

_PACKAGE = Path(__file__).resolve().parents[2]


def record_start(
    path: Path,
    recipe: Recipe,
    step: int,
    datasets: Mapping[str, str],
    engine: str,
    processes: int,
    revisions: Mapping[str, str] | None = None,
) -> None:
    """Append the start of a run, or of its resumption, to `reproduce.json`.

    Args:
        path: The file; created if absent.
        recipe: The resolved recipe, every default spelled out.
        step: Optimiser steps done before.
        datasets: Fingerprints of the frames that are trained on, by path.
        engine: Name of the engine.
        processes: Number of processes, all machines together.
        revisions: Commits of the hub datasets, by path.

    A damaged file is moved aside, and a new one begun.
    """
    starts = _read(path)
    if starts is None:
        aside = path.with_name(f"{path.stem}.damaged{path.suffix}")
        logger.warning("%s is damaged: it is moved to %s, and a new record begun", path, aside)
        path.replace(aside)
        starts = []
    starts.append(
        {
            "step": step,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": list(sys.orig_argv),
            "recipe": recipe.model_dump(mode="json"),
            "versions": package_versions(),
            "git": git_state(_PACKAGE),
            "datasets": dict(datasets),
            "revisions": dict(revisions or {}),
            "engine": engine,
            "processes": processes,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        }
    )
    atomic_write(path, json.dumps({"starts": starts}, indent=2) + "\n")


def check_recorded_data(path: Path, datasets: Mapping[str, str]) -> None:
    """Check that a run's data are those of its last start, wherever they lie now.

    Args:
        path: Its `reproduce.json`; where it is missing or damaged, nothing can be compared.
        datasets: Fingerprints of the frames that are trained on now.

    Raises:
        TrainingError: They are others.
    """
    starts = _read(path)
    before = starts[-1].get("datasets") if starts else None
    if isinstance(before, dict) and before and sorted(before.values()) != sorted(datasets.values()):
        raise TrainingError(
            f"{path.parent} was trained on other data than {', '.join(datasets)}: their fingerprints differ. "
            "They have changed since, or are others."
        )


def run_identity(path: Path) -> str:
    """Return 16 hex digits that tell a run from all others and stay when it is resumed.

    Args:
        path: Its `reproduce.json`, which is there.
    """
    starts = _read(path)
    assert starts, path
    first = json.dumps([str(path.resolve()), starts[0]], sort_keys=True)
    return hashlib.sha256(first.encode()).hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that training depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"torch": torch.__version__}  # with the CUDA version that it was built for


def git_state(package: Path) -> dict[str, Any] | None:
    """Return the commit of the checkout that a package runs from, and whether files differ from it.

    Args:
        package: The package's folder. One that was installed from a wheel is in no checkout, even where its
            environment lies in one: None.
    """
    commit = _git(package, "rev-parse", "HEAD")
    if commit is None or _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return {"commit": commit, "is_dirty": bool(_git(package, "status", "--porcelain", "-uno"))}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git; None where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, encoding="utf-8", errors="replace"
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read(path: Path) -> list[dict[str, Any]] | None:
    """Return the recorded starts; None where the file is damaged."""
    try:
        starts = json.loads(path.read_bytes())["starts"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        return None
    is_whole = isinstance(starts, list) and all(isinstance(one, dict) for one in starts)
    return starts if is_whole else None
