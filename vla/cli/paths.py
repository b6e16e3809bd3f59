"""Where a command may write: asked before any work is done, so that minutes of set-up are not lost."""

import os
import shutil
from pathlib import Path

from vla.atomic import keeps_no_files
from vla.errors import ConfigError

_SUFFIX = len(".12345678.tmp") + 1
"""What a folder's name has more while it is written; see `vla.atomic`."""


def check_new_folder(path: Path, option: str = "--output", *inputs: str | Path, empty: bool = False) -> None:
    """Refuse a folder that cannot be made, before any work is done.

    Args:
        path: The folder to make.
        option: What the user calls it.
        *inputs: Folders that are read, in none of which it may lie; what is not here is passed over.
        empty: Whether an empty folder may be there already.

    Raises:
        ConfigError: It is there already, or cannot be made: the reason is given.
    """
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{option} {path} is a link to {path.readlink()}, which is not there.")
    _check_inputs(path, option, inputs)
    if path.exists() and not (empty and path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"{path} is already there; give another {option} or remove it.")
    _check_place(path, option)


def check_file(path: Path, option: str) -> None:
    """Refuse a file that is there already or cannot be written, before any work is done.

    Raises:
        ConfigError: It is there already, a folder, or lies where no file can be written: the reason is given.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; give the name of a file.")
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{option} {path} is a link to {path.readlink()}, which is not there.")
    if path.exists():
        raise ConfigError(f"{path} is already there; give another {option} or remove it.")
    if not path.parent.exists():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}.")
    _check_place(path, option)


def _check_place(path: Path, option: str) -> None:
    """Raise `ConfigError` unless something new can be made at `path`, missing folders above it included."""
    place = path.absolute().parent
    while not place.exists() and not place.is_symlink():
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"{option} {path} lies below {place}, which is not a folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path}: nothing can be written into {place} (permission, or read-only).")
    longest = os.pathconf(place, "PC_NAME_MAX") - _SUFFIX
    for name in path.absolute().relative_to(place).parts:
        if len(os.fsencode(name)) > longest:
            raise ConfigError(f"{option}: the name {name[:40]}... is too long, by more than {longest} bytes.")
    if keeps_no_files(place):
        raise ConfigError(f"{option} {path}: {place} is of the system, which keeps no files there.")
    usage = shutil.disk_usage(place)
    if usage.total and not usage.free:
        raise ConfigError(f"{option} {path}: the disk is full.")


def _check_inputs(path: Path, option: str, inputs: tuple[str | Path, ...]) -> None:
    whole = path.resolve()
    for one in inputs:
        if not str(one) or not Path(one).is_dir():
            continue
        place = Path(one).resolve()
        if whole == place:
            raise ConfigError(f"{option} {path} is what is read; give another folder.")
        if whole.is_relative_to(place):
            raise ConfigError(f"{option} {path} lies inside {one}, which is read; give a folder outside it.")
