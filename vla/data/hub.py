"""Where a dataset is: a local folder, or a snapshot of a Hugging Face dataset.

Of a hub dataset only what is needed is downloaded: the metadata first, then the files of the selected
episodes and cameras; or, with `stream.FileStream`, the videos one by one when they are needed.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vla.errors import DatasetError

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ADVICE = "Give a local folder, or try again with a network connection."
_MANY_FILES = 200  # beyond, matching every file against every pattern costs more than it saves


@dataclass(frozen=True)
class DatasetLocation:
    """A dataset's root folder, and the repository that it is a snapshot of.

    Attributes:
        root: Folder with `meta/`.
        repo_id: Hub id, or None for a local folder.
        revision: Commit of the snapshot, so that metadata and files come from the same one.
    """

    root: Path
    repo_id: str | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """What to call the hub dataset in a message."""
        return f"'{self.repo_id}'" + (f" at revision '{self.revision}'" if self.revision else "")

    def fetch(self, files: Iterable[str]) -> None:
        """Make sure that some files are in the folder. Local folders have what they have.

        Args:
            files: Paths relative to the root.

        Raises:
            DatasetError: They cannot be downloaded.
        """
        missing = sorted({file for file in files if not (self.root / file).exists()})
        if self.repo_id is None or not missing:
            return
        if len(missing) > _MANY_FILES:
            missing = sorted({f"{file.rsplit('/', 1)[0]}/*" for file in missing})
        _download(self.repo_id, self.revision, missing)


def locate(path_or_repo_id: str | Path, revision: str | None = None) -> DatasetLocation:
    """Find a dataset's folder; for a hub id, download its metadata.

    Args:
        path_or_repo_id: Folder, or `"owner/name"`.
        revision: Branch, tag or commit of the hub dataset (`main` by default).

    Raises:
        DatasetError: There is no such folder or hub dataset, it cannot be reached, or a revision is given
            for a folder.
    """
    path = Path(path_or_repo_id).expanduser()
    if path.exists():
        if revision is not None:
            raise DatasetError(
                f"{path} is a local folder, so revision='{revision}' means nothing: leave it out."
            )
        if not path.is_dir():
            raise DatasetError(
                f"{path} is a file; a LeRobot dataset is a folder with meta/, data/ and videos/."
            )
        return DatasetLocation(path)
    repo_id = str(path_or_repo_id)
    if not _REPO_ID.fullmatch(repo_id):
        raise DatasetError(
            f"There is no folder '{path}', and it is not a hub id of the form owner/name either."
        )
    root = _download(repo_id, revision, ["meta/*"])
    # The snapshot's folder is named after the commit: what follows comes from the same one.
    return DatasetLocation(root, repo_id, root.name if _COMMIT.fullmatch(root.name) else revision)


def _download(repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    import huggingface_hub

    where = f"'{repo_id}'" + (f" at revision '{revision}'" if revision else "")
    with hub_errors(where, f"There is no folder {where}, and the hub dataset of that name", _ADVICE):
        return Path(
            huggingface_hub.snapshot_download(
                repo_id, repo_type="dataset", revision=revision, allow_patterns=patterns
            )
        )


@contextmanager
def hub_errors(where: str, what: str, advice: str) -> Iterator[None]:
    """Turn what `huggingface_hub` raises in the block into one `DatasetError`, caused by it.

    Args:
        where: The dataset, as messages call it.
        what: That which cannot be downloaded, to begin a sentence with.
        advice: What to do where the hub or the wire is to blame.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise DatasetError(
            f"The hub dataset {where} is gated: accept its terms on its page, then `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DatasetError(f"The hub dataset {where} does not exist at that revision.") from error
    except errors.RepositoryNotFoundError as error:
        raise DatasetError(
            f"There is neither a folder nor a hub dataset {where}. If it is private, `hf auth login` first."
        ) from error
    except (
        errors.HFValidationError,
        errors.EntryNotFoundError,
        errors.HTTPError,  # any failure on the wire
        errors.XetDownloadError,
        RuntimeError,  # what the hub's storage client raises from its compiled part
        OSError,  # offline mode, a full disk
    ) as error:
        cause = error.__cause__
        if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(
            cause, errors.HTTPError | OSError
        ):
            error = cause  # the cache was only the second try
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DatasetError(f"{what} cannot be downloaded: {reason} {advice}") from error
