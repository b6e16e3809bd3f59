"""Which policy exactly a server has: its checkpoint's folder and content, and how it was opened.

What a user typed, `runs/first`, stands for the newest checkpoint of a run, which is another one tomorrow.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla.errors import DatasetError, misread
from vla.paths import expanded, is_hidden
from vla.policies.auto import load
from vla.policies.robot import RobotPolicy
from vla.transforms.robots import SHIPPED_ROBOTS

_CONTENT = (
    "*.safetensors", "shards/*.safetensors", "*.json", "*.model", "pipelines/*", "assets/**/*", "params/**/*",
    "d/*", "ocdbt.process_*/**/*",
)  # fmt: skip
_CHANGES = ("adapters.json",)  # written next to a policy later on, and nothing of it
_OPENED = ("pipeline", "base", "robot", "quantize")
_WHOLE = 64 * 2**20
_EVERY, _SAMPLE = 64 * 2**10, 64


def source_of(
    folder: Path,
    *,
    repository: str | None = None,
    revision: str | None = None,
    pipeline: str | None = None,
    base: str | Path | None = None,
    robot: str | Path | None = None,
    quantize: str | None = None,
) -> dict[str, Any]:
    """Return what a server's contract says of its policy under `source`, as plain values.

    Args:
        folder: The checkpoint's own, not its run's.
        repository: Its hub id, where there is a revision.
        revision: Its commit on the hub.
        pipeline: Which robot of a checkpoint that was trained on several.
        base: Where an adapter's base was found, if not where the adapter says.
        robot: The robot's file, or a shipped one's name, where the checkpoint records no robot.
        quantize: In how many bits its linear layers are stored, if not as they are.
    """
    return {
        "folder": str(folder.absolute()),
        "content": None if revision else content_of(folder),  # a commit's never changes
        "repository": repository if revision else None,
        "revision": revision,
        "pipeline": pipeline,
        "base": _place(base),
        "robot": _place(robot),
        "quantize": quantize,
    }


def content_of(folder: Path) -> str:
    """Return a hash of a checkpoint's weights, config, statistics and pipelines.

    Files of up to 64 MiB count whole, of larger ones 64 bytes in every 64 KiB: milliseconds, not seconds, and
    no training leaves these as they were.
    """
    digest = hashlib.sha256()
    found = {path for pattern in _CONTENT for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(path for path in found if not is_hidden(path) and path.name not in _CHANGES):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        if size <= _WHOLE:
            digest.update(path.read_bytes())
            continue
        with path.open("rb", buffering=0) as file:
            for place in (*range(0, size, _EVERY), size - _SAMPLE):
                digest.update(os.pread(file.fileno(), _SAMPLE, place))
    return digest.hexdigest()[:16]


def load_source(contract: Mapping[str, Any]) -> RobotPolicy:
    """Load the policy that a server had, by its contract.

    Raises:
        DatasetError: Its checkpoint is not there any more, or was changed.
        VlaError: It cannot be loaded (see `vla.load`).
    """
    with misread("The contract of a recording", DatasetError):
        source, checkpoint = contract.get("source"), contract["checkpoint"]
        # Without a source: of a server that was made in Python, or by an earlier version.
        repository, revision = (
            checkpoint if source is None else source["repository"],
            contract.get("revision"),
        )
        how = {key: source[key] for key in _OPENED if source.get(key) is not None} if source else {}
        folder, content = (Path(source["folder"]), source["content"]) if source else (None, None)
    if folder is None:
        return load(repository, **({"revision": revision} if revision else {}))
    if folder.is_dir():
        if content is not None and content != content_of(folder):
            raise DatasetError(
                f"{folder} is not the checkpoint any more that was served: its files have changed since. "
                "If you have a copy of what it was, hand it over: replay(..., robot_policy=vla.load(COPY))."
            )
        return load(folder, **how)
    if repository and revision:
        return load(repository, revision=revision, **how)
    raise DatasetError(
        f"{folder}, the checkpoint that was served, is not there (any more). If it was moved, or is on "
        "another machine, hand it over: replay(..., robot_policy=vla.load(WHERE))."
    )


def _place(named: str | Path | None) -> str | None:
    """Return a name that means the same in any folder."""
    if named is None:
        return None
    path = expanded(named)
    if path.parent == SHIPPED_ROBOTS:
        return path.stem
    return str(path.absolute()) if path.exists() else str(named)
