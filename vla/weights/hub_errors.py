"""Failures of the hub as one sentence that names the repository and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import constants, errors

from vla.errors import DatasetError, WeightsError

LOG_IN = "`hf auth login`, or pass a token"
READ_TOKEN = f"{LOG_IN} that may read it"

HUB_FAILURES = (
    errors.HTTPError,  # every answer that is not a success, and every failure on the wire
    errors.HFValidationError,
    errors.EntryNotFoundError,  # also when neither the hub nor the cache has a file
    errors.XetDownloadError,
    RuntimeError,  # what the hub's storage client raises from its compiled part
    OSError,  # offline mode, a token that is not there, a full disk
)
"""What the functions of `huggingface_hub` raise for causes that are not ours."""


@contextmanager
def hub_errors(
    repo_id: str,
    revision: str | None = None,
    verb: str = "downloaded",
    *,
    what: str | None = None,
    dataset: bool = False,
) -> Iterator[None]:
    """Turn what `huggingface_hub` raises in the block into one error of ours.

    Args:
        repo_id: The repository that is read or written.
        revision: The branch, tag or commit that was asked for.
        verb: What the block does, as in "could not be <verb>".
        what: What of the repository the block asks for, as the subject of a sentence; the repository where
            not given.
        dataset: The repository is a dataset's.

    Raises:
        WeightsError: One line: the repository, the cause, what to do.
        DatasetError: The same about a dataset.
    """
    try:
        yield
    except HUB_FAILURES as error:
        found: Exception = error
        cause = error.__cause__
        if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(
            cause, errors.HTTPError | OSError
        ):
            found = cause  # the cache was only the second try
        said = _Explanation(repo_id, revision, verb, what, dataset).of(found)
        raise (DatasetError if dataset else WeightsError)(said) from found


@dataclass(frozen=True)
class _Explanation:
    """The sentence for one of `HUB_FAILURES`; the attributes are the arguments of `hub_errors`."""

    repo_id: str
    revision: str | None
    verb: str
    what: str | None
    dataset: bool

    @property
    def name(self) -> str:
        """The repository, as messages begin with it."""
        return f"The hub dataset '{self.repo_id}'" if self.dataset else self.repo_id

    @property
    def failed(self) -> str:
        """The beginning of "X could not be downloaded"."""
        return f"{self.what or self.name} could not be {self.verb}"

    def of(self, error: Exception) -> str:
        """Return the sentence."""
        if isinstance(error, errors.LocalTokenNotFoundError):
            return f"{self.name} needs a token and none is stored here: log in with {LOG_IN}."
        if isinstance(error, errors.HFValidationError):
            return f"'{self.repo_id}' is not a name that the hub allows: {first_line(error)}"
        if isinstance(error, errors.HfHubHTTPError):
            return self._refusal(error)
        if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
            # Where local_files_only forbids to ask, nothing stands behind the cache's own error.
            cached = ", and the cache does not hold all of it" if self.verb == "downloaded" else ""
            return self._unreached(f"it was not asked (offline mode){cached}")
        if isinstance(error, errors.HTTPError | ConnectionError | TimeoutError):
            text, kind = first_line(error), type(error).__name__
            return self._unreached(text if text == kind else f"{kind}: {text}")
        if isinstance(error, OSError) and error.strerror:
            where = f" ({error.filename})" if error.filename else ""
            return f"{self.failed}: {error.strerror}{where}."
        return f"{self.failed}: {first_line(error)}"

    def _refusal(self, error: errors.HfHubHTTPError) -> str:
        """What the hub answered."""
        page = f"{constants.ENDPOINT}/{'datasets/' if self.dataset else ''}{self.repo_id}"
        if isinstance(error, errors.GatedRepoError):
            return f"{self.name} is gated: accept its terms at {page} and log in with {READ_TOKEN}."
        if isinstance(error, errors.RevisionNotFoundError):
            revision = self.revision or "main"
            return f"{self.name} has no revision '{revision}' on the hub; {page}/tree/main lists them."
        if isinstance(error, errors.RepositoryNotFoundError):
            if self.verb != "downloaded":
                return (
                    f"{self.repo_id} is not a repository on the hub that the token may write to: log in with "
                    f"{LOG_IN}."
                )
            kind = "dataset" if self.dataset else "repository"
            return (
                f"{self.repo_id} is neither a folder here nor a {kind} on the hub. If it is private, log in "
                f"with {READ_TOKEN}."
            )
        if isinstance(error, errors.DisabledRepoError):
            return f"{self.name} was disabled on the hub; {page} may say why."
        return f"{self.failed}: {_answer(error)}"

    def _unreached(self, reason: str) -> str:
        reason, again = reason.rstrip("."), "with a network connection and without HF_HUB_OFFLINE."
        if self.verb != "downloaded" or self.what is not None:
            return f"{self.failed}: the hub could not be reached for it: {reason}. Try again {again}"
        return (
            f"{self.repo_id} is not a folder here, and the hub could not be reached for it: {reason}. Give a "
            f"folder, or try again {again}"
        )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that is not empty, or the error's kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _answer(error: errors.HfHubHTTPError) -> str:
    status = error.response.status_code
    said = " ".join((error.server_message or first_line(error)).split())
    if status == 401:
        return f"the hub wants a valid token ({said.rstrip('.')}): log in with {LOG_IN}."
    if status == 403:
        return (
            f"the hub forbids it ({said.rstrip('.')}); use a token with the right to, and accept the "
            "repository's terms if it has any."
        )
    if status in (409, 412):
        return f"it changed in the meantime ({said.rstrip('.')}); do the same again."
    if status == 429:
        return "the hub gets too many requests from here; wait some minutes, or log in for a higher limit."
    if status >= 500:
        return f"the hub is in trouble (it answers {status}); try again later."
    return f"the hub answers {status}: {said}"
