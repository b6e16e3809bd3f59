"""The folder that recordings and runs of a measurement are kept in, so that another one can use them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vla.atomic import atomic_write, read_json
from vla.bench.execution.options import ExecutionOptions
from vla.errors import ConfigError

SETTINGS = "execution.json"
"""What the recordings and runs of a folder were made with."""

KEPT = ("demonstrations", "pace", "clearance", "seed", "steps", "max_prefix")


def is_work_folder(folder: Path) -> bool:
    """Return whether a measurement keeps its recordings there."""
    return (folder / SETTINGS).is_file()


@contextmanager
def work_folder(options: ExecutionOptions) -> Iterator[Path]:
    """Open the folder, or a temporary one.

    Raises:
        ConfigError: What lies there was made with other settings, or is something else.
    """
    if options.work is None:
        with TemporaryDirectory(prefix="vla-bench-") as name:
            yield Path(name)
        return
    folder, settings = options.work, _settings(options)
    if is_work_folder(folder):
        _check_same(folder, read_json(folder / SETTINGS, ConfigError), settings)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
    yield folder


def _settings(options: ExecutionOptions) -> dict[str, Any]:
    return json.loads(json.dumps({name: getattr(options, name) for name in KEPT}))


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in KEPT:
        if before.get(name) != now[name]:
            raise ConfigError(
                f"What lies in {folder} was made with {name}={before.get(name)}, now it is {now[name]}: give "
                "another --work, or the same settings."
            )
