"""The files of a hub dataset one by one, each downloaded when it is first needed.

They go into the hub library's own cache, at the one commit that the dataset was opened at, and stay there:
the second epoch, and the next run, find them. Of several processes that want the same file, the library lets
one download it while the others wait.

Where the disk is too small for all of them, `disk_gb` bounds what is kept. Then they go into a folder of
their own next to the snapshots, from which the least recently opened ones are removed; the cache's
other content belongs to the user, and is read but never removed.
"""

import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from vla.data.hub import DatasetLocation
from vla.errors import ConfigError, DatasetError
from vla.types import as_flag, as_number
from vla.weights.hub_errors import hub_errors

logger = logging.getLogger(__name__)

_WAITS_S = (1.0, 5.0, 25.0)
"""Before the second, third and fourth attempt at a file; the hub's library retries by itself, too."""

_IN_USE_S = 60.0
"""A file that was requested so recently is not removed: a process may be about to open it."""

_FOLDER = "streamed"


def stream_of(source: DatasetLocation, streaming: bool, disk_gb: float | None) -> "FileStream | None":
    """Return what downloads a dataset's videos when they are needed; None for those of a folder, or unasked.

    Raises:
        ConfigError: `streaming` is not True or False, or `disk_gb` is not positive.
        DatasetError: See `FileStream`.
    """
    is_streamed = as_flag(streaming, "streaming") and source.repo_id is not None
    _check_disk_space(disk_gb)
    return FileStream(source, disk_gb) if is_streamed else None


def _check_disk_space(disk_gb: float | None) -> None:
    if disk_gb is not None and as_number(disk_gb, "streaming_disk_gb") <= 0:
        raise ConfigError(f"The disk space for streamed files must be positive, got {disk_gb} GB.")


class FileStream:
    """Finds a dataset's files, downloading absent ones. It can be sent to worker processes.

    Args:
        source: A hub dataset at a known commit.
        disk_gb: Disk space for the downloaded files, in GB (10^9 bytes); None keeps all.

    Raises:
        ConfigError: `disk_gb` is not positive.
        DatasetError: The commit is not known.
    """

    def __init__(self, source: DatasetLocation, disk_gb: float | None = None) -> None:
        _check_disk_space(disk_gb)
        if source.repo_id is None or source.revision is None:
            raise DatasetError(
                f"{source.root} is not a snapshot of a commit of a hub dataset: read it unstreamed."
            )
        self._source, self._repo_id, self._commit = source, source.repo_id, source.revision
        self._kept = None if disk_gb is None else source.root.parent.parent / _FOLDER / source.revision
        self.disk_bytes = None if disk_gb is None else int(disk_gb * 1e9)
        self._sizes: dict[str, int] = {}

    def path(self, name: str) -> Path:
        """Return a file's path, downloading it first if needed.

        Args:
            name: Path relative to the dataset's root.

        Raises:
            DatasetError: It could not be downloaded after several attempts; the message names file and
                dataset.
        """
        cached = self._source.root / name
        if cached.exists():
            return cached
        if self._kept is None:
            return self._download(name)
        try:
            os.utime(self._kept / name)  # marks it as in use
        except FileNotFoundError:
            self._make_room(name)
            return self._download(name)
        return self._kept / name

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Return the sizes of some files in bytes; those of absent files come from the hub.

        Raises:
            DatasetError: The dataset lacks one of them, or the hub cannot be asked.
        """
        names = list(names)
        self._sizes = {
            name: path.stat().st_size for name in names if (path := self._source.root / name).exists()
        }
        absent = [name for name in names if name not in self._sizes]
        if not absent:
            return self._sizes
        what = (
            f"{len(absent)} of the {len(names)} video files of the hub dataset {self._source.name}, such as "
            f"{absent[0]}, are not in the cache, and the list of them"
        )
        with hub_errors(self._repo_id, self._commit, what=what, dataset=True):
            listed = dict(self._listed({PurePosixPath(name).parts[0] for name in absent}))
        for name in absent:
            if name not in listed:
                raise DatasetError(f"{name} is missing: the dataset {self._source.name} is incomplete.")
            self._sizes[name] = listed[name]
        return self._sizes

    def _listed(self, folders: Iterable[str]) -> Iterator[tuple[str, int]]:
        from huggingface_hub import HfApi

        for folder in sorted(folders):
            for entry in HfApi().list_repo_tree(
                self._repo_id, folder, recursive=True, revision=self._commit, repo_type="dataset"
            ):
                size = getattr(entry, "size", None)  # folders have none
                if size is not None:
                    yield entry.path, int(size)

    def _download(self, name: str) -> Path:
        import huggingface_hub

        # Progress bars of many processes would overwrite each other.
        huggingface_hub.utils.disable_progress_bars("huggingface_hub.http_get")
        huggingface_hub.utils.disable_progress_bars("huggingface_hub.xet_get")
        logger.info("downloading %s of %s", name, self._source.name)
        attempts = len(_WAITS_S) + 1
        for attempt in range(attempts):
            what = f"{name} of the hub dataset {self._source.name}"
            try:
                with hub_errors(self._repo_id, self._commit, what=what, dataset=True):
                    return Path(
                        huggingface_hub.hf_hub_download(
                            self._repo_id,
                            name,
                            repo_type="dataset",
                            revision=self._commit,
                            local_dir=self._kept,
                        )
                    )
            except DatasetError as error:
                if attempt == attempts - 1 or not _may_pass(error.__cause__):
                    raise
                logger.warning("%s Attempt %d of %d follows.", error, attempt + 2, attempts)
                time.sleep(_WAITS_S[attempt])
        raise AssertionError

    def _make_room(self, name: str) -> None:
        """Remove the least recently opened files until `name` fits, but none in use."""
        assert self._kept is not None
        assert self.disk_bytes is not None
        found = []
        for path in self._kept.rglob("*"):
            with suppress(FileNotFoundError):  # another thread or process has made room, too
                about = path.stat()
                if ".cache" not in path.relative_to(self._kept).parts and stat.S_ISREG(about.st_mode):
                    found.append((about.st_mtime, about.st_size, path))
        total = sum(size for _, size, _ in found) + self._sizes.get(name, 0)
        for used, size, path in sorted(found):
            if total <= self.disk_bytes or used > time.time() - _IN_USE_S:
                return
            path.unlink(missing_ok=True)
            total -= size


def _may_pass(error: BaseException | None) -> bool:
    """Return whether an error may be temporary: the connection, or a hub that is busy or in trouble."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    if isinstance(error, errors.OfflineModeIsEnabled | errors.EntryNotFoundError):
        return False
    if isinstance(error, OSError):
        return error.errno is None or isinstance(error, ConnectionError | TimeoutError)
    return isinstance(error, errors.HTTPError | errors.XetDownloadError | RuntimeError)
