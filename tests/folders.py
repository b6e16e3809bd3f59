"""What lies in a folder, to compare before and after something that must change nothing there."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vla.policies import base


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


def guard_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert of every checkpoint folder that is loaded from here on, well or not, that it stays as it was."""

    def guarded(load: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(load)
        def loaded(folder: Path, *args: Any, **kwargs: Any) -> Any:
            with untouched(Path(folder)):
                return load(folder, *args, **kwargs)

        return loaded

    for name in ("load_quantized", "load_with_base"):
        monkeypatch.setattr(base, name, guarded(getattr(base, name)))
