"""Upload a policy to the hub: weights, pipeline and card in one commit, or nothing."""

import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors

from vla.checkpoints.hub.card import BEGIN, END, Origin, license_of, merge_cards, model_card, read_origin
from vla.checkpoints.module import PolicyModule
from vla.errors import ConfigError, WeightsError
from vla.paths import is_of_finder
from vla.types import HUB_ID
from vla.weights.formats import ADAPTER_FILES, BASE_FILE
from vla.weights.hub_errors import hub_errors

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"

# Files of an earlier checkpoint that this one does not overwrite: next to the new
# files it would make the folder two checkpoints at once.
_STALE = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|pipeline\.json|statistics\.json"
    r"|policy_(pre|post)processor.*|pipelines/.*"
)


def push(
    policy: PolicyModule,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "5GB",
    run: Path | str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
    recipe: str | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    overwrite_card: bool = False,
) -> str:
    """Upload a policy, its pipeline and its model card as one commit.

    The repository is created if it does not exist. A README.md that somebody has written stays as it is, and
    the log says so; one that an earlier push wrote is renewed between its markers (see `card.merge_cards`).
    The files are first written to the system's folder for temporary files (TMPDIR), which needs room for
    them.

    Args:
        policy: What to upload.
        repo_id: `"owner/name"`.
        private: Whether a new repository is private; the owner's default where not given.
        token: Hub token with the right to write; what `hf auth login` stored where not given.
        revision: Branch to commit to, made from `main` where it does not exist; `main` where not given.
        commit_message: Message of the commit.
        create_pr: Propose the commit as a pull request against `main` instead of making it.
        max_shard_size: Largest file of weights, bytes or such as "5GB".
        run: Folder of the training run or checkpoint, from which the next four are read where not given.
        base_model: Hub id of the weights that training began with.
        dataset: Hub id of what it was trained on.
        recipe: The recipe's YAML.
        metrics: Numbers for the card, by name.
        license: Identifier as on the hub; otherwise that of the present README or of a known base model.
        overwrite_card: Replace a README.md that somebody has written.

    Returns:
        The address of the policy, or of the pull request.

    Raises:
        WeightsError: The name is invalid, writing is not permitted, or the hub cannot be reached. Nothing was
            committed.
        ConfigError: `run` is not a training run, or a pull request is asked for on another branch.
        SaveError: The folder for temporary files has no room.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise WeightsError(f"'{repo_id}' is not a hub id of the form owner/name.")
    if policy.adapter is not None and policy.loaded_from and policy.loaded_from.revision is None:
        raise WeightsError(
            f"This adapter's base lies in {policy.loaded_from.name}, where others cannot reach it. Push "
            "what `vla merge` makes of the two; or push the base, and train the adapter on its hub id."
        )
    if create_pr and revision not in (None, constants.DEFAULT_REVISION):
        raise ConfigError(f"A pull request goes to main, not to '{revision}': leave out one of the two.")
    if not policy.should_save_on_this_rank(True):  # another process uploads it
        return _address(repo_id, revision)
    datasets = None if dataset is None else (dataset,)
    given = {"base_model": base_model, "datasets": datasets, "recipe": recipe, "metrics": metrics}
    origin = replace(
        read_origin(run) if run is not None else Origin(),
        license=license,
        **{name: value for name, value in given.items() if value is not None},
    )
    api = HfApi(token=token)
    with hub_errors(repo_id, revision, "uploaded"):
        api.whoami()  # before minutes are spent on writing
    with tempfile.TemporaryDirectory(prefix="vla_push_") as temporary:
        folder = Path(temporary) / "policy"
        policy.save_pretrained(folder, max_shard_size=max_shard_size)
        with hub_errors(repo_id, revision, "uploaded"):
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            there = api.model_info(repo_id, revision=revision)
            existing = _existing_card(api, repo_id, there.sha, Path(temporary) / "card")
            _write_card(policy, repo_id, origin, None if overwrite_card else existing, folder)
            commit = api.create_commit(
                repo_id,
                _operations(folder, [file.rfilename for file in there.siblings or ()]),
                commit_message=commit_message or f"Upload {type(policy).__name__} with vla",
                revision=revision,
                create_pr=create_pr,
                # Between reading the README and the commit, someone may have written one.
                parent_commit=there.sha,
            )
    return commit.pr_url or _address(repo_id, revision)


def own_repository(folder: Path, token: str | bool | None = None) -> str:
    """Return the id of a repository of the token's owner that is called as a folder is.

    Raises:
        WeightsError: Nobody is logged in, or the hub cannot be reached.
    """
    with hub_errors(folder.resolve().name, None, "uploaded"):
        return f"{HfApi(token=token).whoami()['name']}/{folder.resolve().name}"


def _existing_card(api: HfApi, repo_id: str, revision: str | None, folder: Path) -> str | None:
    try:
        path = api.hf_hub_download(repo_id, CARD_FILE, revision=revision, cache_dir=folder)
    except errors.RemoteEntryNotFoundError:
        return None
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _write_card(
    policy: PolicyModule, repo_id: str, origin: Origin, existing: str | None, folder: Path
) -> None:
    origin = replace(origin, license=origin.license or license_of(existing))
    text = merge_cards(existing, model_card(policy, repo_id, origin))
    if text is None:
        logger.warning(
            "%s of %s was written by hand and stays as it is, without the facts of this policy. Where it "
            "holds the lines %s and %s, a push writes them between these; overwrite_card=True replaces it.",
            CARD_FILE,
            repo_id,
            BEGIN,
            END,
        )
        return
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def _operations(folder: Path, there: list[str]) -> list[CommitOperationAdd | CommitOperationDelete | Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not is_of_finder(path))
    names = [path.relative_to(folder).as_posix() for path in files]
    stale = [name for name in there if _STALE.fullmatch(name) and name not in names]
    if BASE_FILE in there and BASE_FILE not in names:  # the adapter here was one of ours
        stale += [name for name in ADAPTER_FILES if name in there]
    return [
        *(CommitOperationAdd(name, path) for name, path in zip(names, files, strict=True)),
        *(CommitOperationDelete(name) for name in stale),
    ]


def _address(repo_id: str, revision: str | None) -> str:
    page = f"{constants.ENDPOINT}/{repo_id}"
    return page if revision in (None, constants.DEFAULT_REVISION) else f"{page}/tree/{revision}"
