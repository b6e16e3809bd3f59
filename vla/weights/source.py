"""Where a checkpoint lies: a folder as it is, or a snapshot of a hub repository."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vla.errors import WeightsError


def local_folder(
    name_or_path: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Return the folder of a checkpoint, downloading it where it is a hub id.

    Args:
        name_or_path: An existing folder, or a hub id `owner/name`.
        revision: Branch, tag or commit on the hub.
        token: Hub token, for private repositories.
        cache_dir: Where snapshots are kept.

    Raises:
        WeightsError: Neither a folder nor a hub repository that can be reached; says which and what to do.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise WeightsError(f"{path} is a file; give the folder that holds config.json and the weights.")
    name = str(name_or_path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise WeightsError(f"{name} is no folder, and not a hub id of the form owner/name either.")
    try:
        return Path(snapshot_download(name, revision=revision, token=token, cache_dir=cache_dir))
    except GatedRepoError as error:
        raise WeightsError(
            f"{name} is gated: accept its terms on the hub and log in with `hf auth login` or pass a token."
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"{name} has no revision '{revision}' on the hub.") from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"{name} is neither a folder here nor a repository on the hub (or it is private)."
        ) from error
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise WeightsError(
            f"{name} is no folder here, and the hub could not be reached for it: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
