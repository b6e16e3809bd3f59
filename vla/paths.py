"""Paths as users write them, on every way in: `~` and `$NAME` stand for what a shell puts in their place."""

import os
import re
from pathlib import Path

from vla.errors import ConfigError
from vla.types import shown

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder in place of `~`, and environment variables in that of their names.

    The home folder of a user who does not exist stays `~name`; so does `$name` in the name of something that
    is there.

    Raises:
        ConfigError: No environment variable of that name is set, or to nothing, or the path is an empty text,
            or something else than text or a Path.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise ConfigError(f"A path must be text or a Path, got {shown(path)}.")
    if path == "":  # which Path takes for the current folder
        raise ConfigError('The path is empty. Name a file or a folder; the current folder is ".".')
    return Path(expanded_text(os.fspath(path)))


def kept(path: str | os.PathLike[str]) -> Path:
    """Return an expanded path as an absolute one: for what is opened again later, by a dataset or a run.

    The program may have changed its folder by then (`os.chdir`, a notebook, hydra).

    Raises:
        ConfigError: What `expanded` refuses; or the path is relative, and the current folder was removed.
    """
    found = expanded(path)
    try:
        return found.absolute()
    except OSError as error:
        raise ConfigError(
            f"{found} is relative to the current folder, which is not there any more: give a whole path."
        ) from error


def is_hidden(path: Path) -> bool:
    """Return whether a name begins with a dot, which no file of a dataset or checkpoint does.

    macOS leaves such files next to others where they are copied or unpacked: `._x` for x, and `.DS_Store`.
    """
    return path.name.startswith(".")


def is_of_finder(path: Path) -> bool:
    """Return whether a file is one that macOS leaves in any folder that it has shown or copied."""
    return path.name.startswith("._") or path.name == ".DS_Store"


def expanded_text(text: str) -> str:
    """Return what may be a path or a name on the hub, expanded as `expanded` does, and otherwise as it is."""
    whole = os.path.expanduser(text)  # Path's own raises for a user who does not exist
    if "$" not in whole:
        return whole
    for found in _VARIABLE.finditer(whole):
        name = found[1] or found[2]
        if os.environ.get(name):
            continue
        upto = whole.find("/", found.end())
        if not os.path.lexists(whole if upto < 0 else whole[:upto]):
            said = "empty" if name in os.environ else "not set"  # `$OUT/x` would be /x
            raise ConfigError(
                f"{text}: the environment variable {name} is {said}. Set it, or give the path in full."
            )
    return os.path.expandvars(whole)
