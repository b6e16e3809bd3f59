"""The hidden folder in which a recording is written: what of it can be read, and what a killed program left.

Files that are not complete yet lie in a folder of their own (`OPEN`), so that all others are those of a
dataset. `LeRobotWriter.flush` moves the complete ones to their places and replaces the metadata.
"""

import fcntl
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vla.atomic import sync
from vla.data.lerobot.layout_v30 import EPISODES_PATH

OPEN = ".open"
"""Folder of the files that are being written, each under its later path."""
NEW_META = ".meta"
"""Folder of the metadata that are being written."""
_OLD_META = ".meta-before"


def publish(folder: Path, to_disk: bool = False) -> None:
    """Move the files that are complete now to where the dataset has them.

    Args:
        folder: The recording's; no file of it may be open any more.
        to_disk: Whether they must be there after a power cut too.
    """
    unfinished = folder / OPEN
    for path in sorted(unfinished.rglob("*")):
        target = folder / path.relative_to(unfinished)
        if path.is_dir():
            target.mkdir(exist_ok=True)
            continue
        if to_disk:
            sync(path)
        os.replace(path, target)
        if to_disk:
            _sync_folder(target.parent)
    shutil.rmtree(unfinished, ignore_errors=True)


def write_metadata(
    folder: Path,
    episodes: list[dict[str, Any]],
    tasks: pa.Table,
    *,
    info: Mapping[str, Any],
    stats: Mapping[str, Any],
    to_disk: bool = False,
) -> None:
    """Write the metadata, and put them in the place of those before, whose further files they keep.

    Args:
        folder: The recording's.
        episodes: Their rows.
        tasks: The table of the tasks.
        info: What info.json says.
        stats: What stats.json says.
        to_disk: Whether they must be there after a power cut too.
    """
    new, now, before = (folder / name for name in (NEW_META, "meta", _OLD_META))
    rows = new / Path(EPISODES_PATH.format(chunk_index=0, file_index=0)).relative_to("meta")
    rows.parent.mkdir(parents=True, exist_ok=True)  # it is there after a Ctrl-C in here
    pq.write_table(pa.Table.from_pylist(episodes), rows)
    pq.write_table(tasks, new / "tasks.parquet")
    for name, values in (("info.json", info), ("stats.json", stats)):
        (new / name).write_text(json.dumps(values, indent=4) + "\n", encoding="utf-8")
    for path in now.iterdir() if now.is_dir() else ():
        if not (new / path.name).exists():
            shutil.copy2(path, new / path.name)
    for path in new.rglob("*") if to_disk else ():
        if path.is_file():
            sync(path)
    shutil.rmtree(before, ignore_errors=True)
    if now.is_dir():
        os.replace(now, before)
    os.replace(new, now)  # a program that is killed just before leaves both: see `leftovers`
    if to_disk:
        _sync_folder(folder)
    shutil.rmtree(before, ignore_errors=True)


def make_folder(destination: Path) -> Path:
    """Make the hidden folder of a recording, next to its destination."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    name = f".{destination.name}."
    return Path(tempfile.mkdtemp(prefix=name, suffix=".partial", dir=destination.parent))


def publish_all(folder: Path, destination: Path) -> None:
    """Move a complete dataset to its destination, which must not exist."""
    if destination.exists():
        raise FileExistsError(f"{destination} was created while the dataset was recorded")
    os.umask(mask := os.umask(0))
    folder.chmod(0o777 & ~mask)  # mkdtemp makes folders for the owner only
    os.replace(folder, destination)


def hold(folder: Path, writer: Any) -> None:
    """Let other programs see that a folder is being written, as long as a writer exists."""
    descriptor = os.open(folder, os.O_RDONLY)
    weakref.finalize(writer, os.close, descriptor)
    with suppress(OSError):  # some file systems have no locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def leftovers(folder: Path | str) -> list[Path]:
    """Return the unfinished folders of recordings to `folder` whose programs are gone, the oldest first."""
    folder = Path(folder).absolute()
    name = re.compile(rf"\.{re.escape(folder.name)}\.[a-z0-9_]{{8}}\.partial")
    try:
        found = [path for path in folder.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]
        return sorted((path for path in found if _is_left(path)), key=lambda path: path.stat().st_mtime)
    except OSError:
        return []


def about_leftovers(folder: Path | str) -> str:
    """Return what is left of recordings to `folder` that were not completed, and what to do; or nothing."""
    said = []
    for path in leftovers(folder):
        try:
            episodes = json.loads((path / "meta/info.json").read_text(encoding="utf-8"))["total_episodes"]
        except (OSError, ValueError, KeyError):
            said.append(
                f"{path} is left of a recording that was killed before an episode was safe: remove it."
            )
        else:
            said.append(
                f"{path} is left of a recording that was killed, a dataset of its {episodes} finished "
                "episodes: rename it to keep it (mv), or remove it."
            )
    return " ".join(said)


def _is_left(path: Path) -> bool:
    """Return whether nobody writes to a folder; metadata that were about to take their place then do."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (path / _OLD_META).is_dir() and not (path / "meta").exists():
            os.replace(path / NEW_META, path / "meta")
    except BlockingIOError:
        return False
    except OSError:  # no locks, or a file system that cannot be written: it is named as it is
        return True
    finally:
        os.close(descriptor)
    return True


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems sync no folders
        sync(folder)
