"""What goes wrong between here and the hub, as one sentence that names the repository and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, errors

from vla.errors import WeightsError

LOG_IN = "`hf auth login`, or pass a token"

HUB_FAILURES = (
    errors.HTTPError,  # every answer that is not a success, and every failure on the wire
    errors.HFValidationError,
    errors.EntryNotFoundError,  # also what is left when neither the hub nor the cache has a file
    errors.XetDownloadError,
    RuntimeError,  # what the hub's storage client raises from its compiled part
    OSError,  # offline mode, a token that is not there, a full disk
)
"""What the functions of `huggingface_hub` raise for causes that are not ours."""


@contextmanager
def hub_errors(repo_id: str, revision: str | None = None, verb: str = "downloaded") -> Iterator[None]:
    """Turn what `huggingface_hub` raises in the block into one `WeightsError`.

    Args:
        repo_id: The repository that the block speaks to.
        revision: The branch, tag or commit that it asked for.
        verb: What the block does, as "could not be <verb>" continues.

    Raises:
        WeightsError: One line: the repository, the cause, what to do.
    """
    try:
        yield
    except HUB_FAILURES as error:
        raise WeightsError(explain(error, repo_id, revision, verb)) from error


def explain(error: Exception, repo_id: str, revision: str | None = None, verb: str = "downloaded") -> str:
    """Return the sentence for one of `HUB_FAILURES`; see `hub_errors` for the arguments."""
    cause = error.__cause__
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(cause, errors.HTTPError | OSError):
        error = cause  # the cache was only the second try
    page = f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id} is gated: accept its terms at {page} and log in with {LOG_IN} that may read it."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision '{revision or 'main'}' on the hub; {page}/tree/main lists them."
    if isinstance(error, errors.RepositoryNotFoundError):
        if verb != "downloaded":
            return (
                f"{repo_id} is not a repository on the hub that the token may write to: log in with {LOG_IN}."
            )
        return (
            f"{repo_id} is neither a folder here nor a repository on the hub. If it is private, log in with "
            f"{LOG_IN} that may read it."
        )
    if isinstance(error, errors.DisabledRepoError):
        return f"{repo_id} was disabled on the hub; {page} may say why."
    if isinstance(error, errors.HfHubHTTPError):
        return f"{repo_id} could not be {verb}: {_answer(error)}"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"{repo_id} needs a token and none is stored here: log in with {LOG_IN} itself."
    if isinstance(error, errors.HFValidationError):
        return f"'{repo_id}' is not a name that the hub allows: {first_line(error)}"
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        # Where local_files_only forbids to ask, nothing stands behind the cache's own error.
        cached = ", and the cache does not hold all of it" if verb == "downloaded" else ""
        return _unreached(repo_id, verb, f"it was not asked (offline mode){cached}")
    if isinstance(error, errors.HTTPError | ConnectionError | TimeoutError):
        text = first_line(error)
        kind = type(error).__name__
        return _unreached(repo_id, verb, text if text == kind else f"{kind}: {text}")
    if isinstance(error, OSError) and error.strerror:
        return f"{repo_id} could not be {verb}: {error.strerror}" + (
            f" ({error.filename})." if error.filename else "."
        )
    return f"{repo_id} could not be {verb}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something, or the error's kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _unreached(repo_id: str, verb: str, reason: str) -> str:
    again = (
        "Give a folder, or try again with a network connection and without HF_HUB_OFFLINE."
        if verb == "downloaded"
        else "Try again with a network connection and without HF_HUB_OFFLINE."
    )
    here = "is not a folder here, and the hub" if verb == "downloaded" else f"could not be {verb}: the hub"
    return f"{repo_id} {here} could not be reached for it: {reason.rstrip('.')}. {again}"


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
