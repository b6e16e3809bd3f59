"""What lies in a folder, to compare before and after something that must change nothing there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def files_of(root: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file: equal before and after something that writes nothing."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def contents_of(root: Path) -> dict[str, bytes]:
    """Content of every file, whenever it was written."""
    return {name: content for name, (_, content) in files_of(root).items()}


@contextmanager
def unchanged(*folders: Path) -> Iterator[None]:
    """Assert that a block, whether it ends well or not, changes no file of some folders and adds none."""
    before = [(files_of(folder), sorted(folder.rglob("*"))) for folder in folders]
    try:
        yield
    finally:
        assert [(files_of(folder), sorted(folder.rglob("*"))) for folder in folders] == before


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """As `unchanged`, by names, sizes and times alone: for what is done many times in a test."""
    before = _stated(folder)
    try:
        yield
    finally:
        assert _stated(folder) == before


def _stated(folder: Path) -> dict[str, tuple[int, int]]:
    found = {str(path): path.lstat() for path in folder.rglob("*")}
    return {name: (stat.st_mtime_ns, stat.st_size) for name, stat in found.items()}
