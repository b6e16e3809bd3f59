"""Where a checkpoint lies: a folder as it is, or a snapshot of a hub repository."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub

from vla.errors import WeightsError, did_you_mean
from vla.paths import expanded
from vla.types import COMMIT, HUB_ID, shown
from vla.weights.files.listing import safetensors_in
from vla.weights.hub_errors import hub_errors
from vla.weights.known import known_checkpoints
from vla.weights.run_folder import PICKLES, chosen_checkpoint, has_weights

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*?)/*")  # a Path keeps one slash of two

# Patterns do not stop at slashes. Files of the top level and files below it are asked for apart, so that a
# repository full of intermediate checkpoints costs no more than the one that it is about.
_TOP_LEVEL = ("*.safetensors", "*.json", "*.model", "*.yaml", "README.md")
_BELOW = (
    "assets/*",
    "pipelines/*",
    "*norm_stats.json",
    "config.json",
    "README.md",
)  # the last two: asking for nothing warns
_ORBAX = (
    "params/*", "d/*", "ocdbt.process_*/*", "array_metadatas/*", "manifest.ocdbt", "_sharding", "_METADATA",
    "_CHECKPOINT_METADATA",
)  # fmt: skip
NEVER = (
    "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.mp4", "*optimizer*", "*training_state*", "*train_state*",
    "*rng_state*",
)  # fmt: skip
_WEIGHTS_BELOW = re.compile(r"(.+)/(?:[^/]*\.safetensors|params/_METADATA)")


def local_folder(
    name_or_path: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    *,
    local_files_only: bool = False,
    force_download: bool = False,
    subfolder: str | None = None,
) -> Path:
    """Return the folder of a checkpoint, downloading what is needed of it where it is on the hub.

    Weights (safetensors, or the parameters of an orbax checkpoint), configs, statistics and tokenizer are
    needed; pickles, optimizer states and videos are never downloaded.

    Args:
        name_or_path: An existing folder, a hub id `owner/name`, or a short name of `vla info known`. A
            training run's folder, or its `checkpoints/`, stands for its newest checkpoint.
        revision: Branch, tag or commit on the hub.
        token: Hub token, for private and gated repositories; what `hf auth login` stored where not given.
        cache_dir: Where snapshots are kept; the hub's own cache where not given.
        local_files_only: Use the cache alone, as HF_HUB_OFFLINE=1 does.
        force_download: Download what is in the cache already once more.
        subfolder: Where the checkpoint lies inside the folder or repository, "checkpoints/last"; its top
            level where not given.

    Raises:
        WeightsError: Neither a folder nor a repository that can be reached and read, or one without a
            checkpoint that can be opened; the message says which and what to do.
    """
    if not isinstance(name_or_path, str | Path):
        loaded = " A policy that is loaded already acts by vla.policies.robot.RobotPolicy(policy)."
        raise WeightsError(
            "A checkpoint is named by its folder, its hub id owner/name or a short name of `vla info known`, "
            f"as text or a Path, got {shown(name_or_path)}.{loaded if callable(name_or_path) else ''}"
        )
    path = expanded(name_or_path or ".")
    if os.path.isdir(path) and str(name_or_path):  # unlike Path, it takes names of any length
        if revision is not None:
            raise WeightsError(
                f"{path} is a local folder, so revision '{revision}' means nothing: leave it out, or give "
                "the hub id of a folder that is not here."
            )
        if subfolder and not (path / subfolder).is_dir():
            raise WeightsError(f"{path} has no folder '{subfolder}'.")
        return chosen_checkpoint(path / (subfolder or ""))
    if os.path.islink(path):
        raise WeightsError(f"{path} is a link to {path.readlink()}, which is not there or not a folder.")
    if os.path.exists(path) and str(name_or_path):
        dataset = next(
            (one for one in path.absolute().parents if (one / "meta" / "info.json").is_file()), None
        )
        raise WeightsError(
            f"{path} is a file; give the folder that holds config.json and the weights."
            if dataset is None
            else f"{path} is a file of the dataset {dataset}, which is not a checkpoint; "
            f"`vla info {dataset}` describes it."
        )
    name = hub_id(str(name_or_path))
    cache = None if cache_dir is None else str(cache_dir)
    inside = f"{subfolder.strip('/')}/" if subfolder else ""
    how: dict[str, Any] = {
        "token": token,
        "cache_dir": cache,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    with hub_errors(name, revision):
        root = _snapshot(name, revision, _at(inside, _TOP_LEVEL), [f"{inside}*/*", *NEVER], how)
        folder = root / inside
        commit = root.name if COMMIT.fullmatch(root.name) else revision
        wanted = [*_BELOW, *(() if _has_safetensors(folder) else _ORBAX)]
        _snapshot(name, commit, _at(inside, wanted), [*NEVER], how)
    if not has_weights(folder):
        raise WeightsError(_what_is_there_instead(name, commit, token))
    return folder


def _at(inside: str, patterns: Iterable[str]) -> list[str]:
    return [inside + pattern for pattern in patterns]


def hub_id(name: str) -> str:
    """Return the hub id that a name stands for: itself, or that of a published checkpoint's short name.

    Raises:
        WeightsError: It is neither; names the nearest short name, or says how to get what lies elsewhere.
    """
    known = known_checkpoints().get(name)
    id = name if known is None else known.id
    if address := _ADDRESS.fullmatch(id):
        said = _how_to_fetch(*address.groups())
        raise WeightsError(said if known is None else f"{name}: {said}")
    if not HUB_ID.fullmatch(id):
        raise WeightsError(
            f"{name or repr(name)} is not a folder here, nor a hub id of the form owner/name, nor a short "
            f"name of `vla info known`.{did_you_mean(name, known_checkpoints())}"
        )
    return id


def _snapshot(
    name: str, revision: str | None, wanted: list[str], never: list[str], how: Mapping[str, Any]
) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=wanted, ignore_patterns=never, **how
        )
    )


def _has_safetensors(folder: Path) -> bool:
    return bool(safetensors_in(folder))


def _what_is_there_instead(name: str, revision: str | None, token: str | bool | None) -> str:
    """Say why a repository cannot be opened; listing its files costs one more request."""
    with hub_errors(name, revision):
        files = huggingface_hub.HfApi(token=token).list_repo_files(name, revision=revision)
    pickles = [file for file in files if file.endswith(PICKLES) and "/" not in file]
    if pickles:
        return (
            f"{name} holds its weights only as {_listed(pickles)}. Such pickles may run code when they are "
            "opened, so this is refused: ask for safetensors, or load them with the library that wrote them, "
            "save them as safetensors, and give the new folder."
        )
    below = sorted({match[1] for file in files if (match := _WEIGHTS_BELOW.fullmatch(file))})
    if below:
        return (
            f"{name} has no weights on its top level, but in {_listed(below)}. Download the one that you "
            f"want, `hf download {name} --include '{below[-1]}/*' --local-dir DIR`, and give its folder."
        )
    return f"{name} holds no weights: neither *.safetensors nor an orbax params/ is there."


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _how_to_fetch(scheme: str, rest: str) -> str:
    url = f"{scheme}://{rest}"
    if scheme != "gs":
        parts = rest.split("/") if scheme == "hf" else rest.split("/")[1:]
        hint = f" For a repository on the hub, give {'/'.join(parts[:2])}." if len(parts) > 1 else ""
        return f"{url} is an address, not a folder or a hub id.{hint}"
    name = rest.rpartition("/")[2]
    cached = expanded(os.environ.get("OPENPI_DATA_HOME", "~/.cache/openpi")) / rest
    if cached.is_dir():
        return f"{url} lies in a bucket, but openpi seems to have downloaded it already: give {cached}."
    return (
        f"{url} lies in a bucket, which is not read from here. Download it first, "
        f"`gsutil -m cp -r {url} .` (or `gcloud storage cp -r`), then give the folder {name}."
    )
