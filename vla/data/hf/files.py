"""Which files lie in a folder that is named as a table, without walking through a whole disk for them."""

import os
from collections.abc import Iterator
from pathlib import Path

from vla.errors import DatasetError
from vla.paths import is_hidden

BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
"""What a file that `load_dataset` reads ends with, and what it calls such files."""

MOST_WITHOUT_TABLE = 10_000
"""Entries of a folder, counted with those of its subfolders, of which one on top has to be a table."""
MOST_ENTRIES = 250_000
"""Entries of any folder: more are those of a disk or of a home folder."""

_ON_TOP = 2  # levels: the folder itself, and its subfolders, which may be splits


def files_of(path: Path, shown: str) -> Iterator[Path]:
    """Yield a file, or those in a folder and its subfolders but for hidden ones, in the order of their names.

    Args:
        path: The file or folder.
        shown: What to call it in messages.

    Raises:
        DatasetError: There are more than a table has, or the folder cannot be read.
    """
    if path.is_file():
        yield path
        return

    def unreadable(error: OSError) -> None:
        if not _below_hidden(Path(error.filename), path):
            raise DatasetError(
                f"{shown} cannot be read: {error}. If that does not belong to it, name the table's folder."
            ) from error

    entries, has_table = 0, False
    for folder, inside, names in os.walk(path, onerror=unreadable):
        inside.sort()
        here = Path(folder)
        files = [] if _below_hidden(here, path) else [here / name for name in sorted(names)]
        files = [file for file in files if not is_hidden(file)]
        if len(here.relative_to(path).parts) < _ON_TOP:
            has_table = has_table or any(file.suffix.lower() in BUILDERS for file in files)
        entries += len(inside) + len(names)  # hidden ones as well, since load_dataset walks through them
        if entries > (most := MOST_ENTRIES if has_table else MOST_WITHOUT_TABLE):
            none = "" if has_table else f", and no table ({', '.join(BUILDERS)}) on top"
            raise DatasetError(
                f"{shown} holds more than {most} files and folders{none}: name the table's own folder."
            )
        yield from files


def _below_hidden(path: Path, root: Path) -> bool:
    return any(is_hidden(Path(part)) for part in path.relative_to(root).parts)
