"""What lies in a folder, for messages about folders that are not what was hoped for."""

from pathlib import Path

from vla.paths import is_hidden

_SHOWN = 6


def safetensors_in(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, in the order of their names, but for hidden ones."""
    return sorted(path for path in folder.glob("*.safetensors") if not is_hidden(path))


def listing(folder: Path, leaving_out: str = "") -> str:
    """Return what lies in a folder, but for one name, in words: "in it are a, b and 7 more"."""
    inside = (path for path in folder.iterdir() if path.name != leaving_out)
    names = sorted(path.name + "/" * path.is_dir() for path in inside)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    said = f"in it {'is' if len(names) == 1 else 'are'} {', '.join(names[:_SHOWN])}{more}"
    return said if names else "it is empty"
