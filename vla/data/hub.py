"""Where a dataset is: a local folder, or a snapshot of a Hugging Face dataset.

Of a hub dataset only what is needed is downloaded: the metadata first, then the files of the selected
episodes and cameras; or, with `stream.FileStream`, the videos one by one when they are needed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vla.errors import DatasetError
from vla.paths import is_hidden, kept
from vla.types import COMMIT, HUB_ID, as_text, shown

_ADDRESS = re.compile(
    r"(?:[a-z][a-z0-9+.-]*:)?/{2,}(?:(?:huggingface\.co|hf\.co)/)?(?:(?:datasets|models)/)?"
    r"([^/@]+/[^/@]+)(?:[/@].*)?"
)
_TABLES = (".parquet", ".arrow")
_SAVED = ("state.json", "dataset_dict.json")
"""What `Dataset.save_to_disk` writes next to the tables."""
_POINTER = b"version https://git-lfs"
_MANY_FILES = 200  # beyond, matching every file against every pattern costs more than it saves


@dataclass(frozen=True)
class DatasetLocation:
    """A dataset's root folder, and the repository that it is a snapshot of.

    Attributes:
        root: Folder with `meta/`, as an absolute path.
        repo_id: Hub id, or None for a local folder.
        revision: Commit of the snapshot, so that metadata and files come from the same one.
    """

    root: Path
    repo_id: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", kept(self.root))  # images are read as long as a dataset is used

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


def refuse_pointer(path: Path) -> None:
    """Raise `DatasetError` where a file is a Git LFS pointer: a clone without the files' content has those.

    Args:
        path: Any file; one that cannot be read is left to its own reader.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_POINTER))
    except (OSError, ValueError):
        return
    refuse_pointer_content(head, str(path))


def refuse_pointer_content(content: bytes, what: str) -> None:
    """Raise `DatasetError` where the content of `what` is a Git LFS pointer's; its beginning is enough."""
    if content[: len(_POINTER)] == _POINTER:
        raise DatasetError(
            f"{what} is a Git LFS pointer, not the file itself: run `git lfs pull` in the dataset's folder, "
            "or use `hf download --repo-type dataset`."
        )


def locate(path_or_repo_id: str | Path, revision: str | None = None) -> DatasetLocation:
    """Find a dataset's folder; for a hub id, download its metadata.

    Args:
        path_or_repo_id: Folder, or `"owner/name"`.
        revision: Branch, tag or commit of the hub dataset (`main` by default).

    Raises:
        DatasetError: There is no such folder or hub dataset, it cannot be reached, or a revision is given
            for a folder.
    """
    revision = None if revision is None else as_text(revision, "revision")
    path = dataset_path(path_or_repo_id)
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
    if not HUB_ID.fullmatch(repo_id):
        raise DatasetError(
            f"There is no folder '{path}', and it is not a hub id of the form owner/name either."
            f"{address_hint(repo_id)}"
        )
    root = _download(repo_id, revision, ["meta/*"])
    # The snapshot's folder is named after the commit: what follows comes from the same one.
    return DatasetLocation(root, repo_id, root.name if COMMIT.fullmatch(root.name) else revision)


def address_hint(name: str) -> str:
    """Return how a repository is named here whose address is given, as a sentence; empty for a plain name.

    Args:
        name: What the user gave: "https://huggingface.co/datasets/owner/name", "hf://owner/name", with or
            without the scheme.
    """
    if name.startswith("file:"):
        return f" A folder of this machine is named by its path: {urlsplit(name).path}."
    match = _ADDRESS.fullmatch(name)
    if match is None:
        return ""
    return f" It seems to be an address: a repository on the hub is named owner/name, here {match[1]}."


def kind_hint(folder: Path, name: str | Path) -> str:
    """Return what a folder without meta/info.json seems to be instead, as a sentence; empty if unknown.

    Args:
        folder: What was named as a LeRobot dataset.
        name: How the user wrote it.
    """
    above = folder.absolute().parent
    if (above / "meta" / "info.json").is_file():
        return f" {above} is a dataset: name that folder."
    if holds_policy(folder):
        return f" {name} holds a policy or a training run, which is not a dataset."
    if (folder / "meta").exists():  # what is left of a dataset
        return ""
    try:
        below = [path for path in folder.iterdir() if not is_hidden(path)]
        files = [*below, *(file for path in below if path.is_dir() for file in path.iterdir())]
    except OSError:
        return ""
    if any(file.suffix in _TABLES or file.name in _SAVED for file in files if not is_hidden(file)):
        return f" It holds a table of `datasets`, which is named with 'hf:' in front: hf:{name}."
    return ""


def holds_policy(folder: Path) -> bool:
    """Return whether a folder is one of a policy's checkpoint or of a training run, as far as names tell."""
    if (folder / "checkpoints").is_dir() and (folder / "recipe.yaml").is_file():
        return True
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def download_all(repo_id: str, revision: str | None = None) -> Path:
    """Download a whole dataset of the hub; return its snapshot's folder, which is named after the commit.

    Raises:
        DatasetError: It does not exist, or cannot be reached.
    """
    return _download(repo_id, revision, ["*"])


def dataset_path(path: str | Path) -> Path:
    """Return a path as `vla.paths.kept` does; raises `DatasetError` where it can be no dataset's."""
    try:
        found = kept(path)
        found.exists()
    except (OSError, ValueError, TypeError) as error:
        said = str(error).rstrip(".")
        raise DatasetError(f"{shown(path)} cannot be a dataset's folder: {said}.") from error
    return found


def _download(repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    import huggingface_hub

    from vla.weights.hub_errors import hub_errors

    with hub_errors(repo_id, revision, dataset=True):
        return Path(
            huggingface_hub.snapshot_download(
                repo_id, repo_type="dataset", revision=revision, allow_patterns=patterns
            )
        )
