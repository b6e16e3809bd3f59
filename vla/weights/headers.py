"""The headers of a checkpoint without its tensors: a hub repository costs a few kilobytes."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub import HfApi, constants

from vla.errors import WeightsError
from vla.paths import expanded
from vla.weights.hub_errors import hub_errors
from vla.weights.source import NEVER, hub_id, local_folder
from vla.weights.tensors import TensorReader

# All small files; the headers of the weights come one by one.
_SMALL = ("*.json", "README.md", "*.yaml", "policy_*processor*.safetensors", "assets/*")


@contextmanager
def header_folder(
    name_or_path: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Iterator[Path]:
    """Yield a folder from which everything but tensor values can be read.

    A folder on this machine is yielded as it is, and so is a snapshot that is in the cache. Of a repository
    that is not, configs, statistics and the safetensors headers are downloaded, and files of the right
    length without content stand in for the weights until the block ends. An orbax checkpoint has no
    headers: it is downloaded.

    Args:
        name_or_path: See `local_folder`, as for the others.
        revision: Branch, tag or commit on the hub.
        token: Hub token.
        cache_dir: Where snapshots are kept.

    Raises:
        WeightsError: See `local_folder`.
    """
    path = expanded(name_or_path or ".")
    if str(name_or_path) and (path.exists() or path.is_symlink()):
        yield local_folder(name_or_path, revision)
        return
    name = hub_id(str(name_or_path))
    if constants.HF_HUB_OFFLINE:
        yield local_folder(name, revision, token, cache_dir)
        return
    api = HfApi(token=token)
    with hub_errors(name, revision):
        small, weights = _download_small(api, name, revision, token, cache_dir)
    if not weights or all((small / file).exists() for file in weights):
        yield local_folder(name, revision, token, cache_dir) if not weights else small
        return
    with tempfile.TemporaryDirectory(prefix="vla_headers_") as temporary:
        folder = Path(temporary)
        for path in small.iterdir():
            if path.name not in weights:
                (folder / path.name).symlink_to(path.resolve())
        for file in weights:
            with hub_errors(name, revision):
                _stand_in(api, name, file, small.name, folder / file)
        yield folder


def _download_small(
    api: HfApi, name: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None
) -> tuple[Path, list[str]]:
    """Download what is small; return its folder and the names of the files that hold weights."""
    info = api.model_info(name, revision=revision)
    small = huggingface_hub.snapshot_download(
        name,
        revision=info.sha,
        token=token,
        cache_dir=None if cache_dir is None else str(cache_dir),
        allow_patterns=[*_SMALL],
        ignore_patterns=["*/*.safetensors", *NEVER],
    )
    files = [sibling.rfilename for sibling in info.siblings or ()]
    weights = [file for file in files if file.endswith(".safetensors") and "/" not in file]
    return Path(small), [file for file in weights if not file.startswith("policy_")]


def _stand_in(api: HfApi, name: str, file: str, revision: str, path: Path) -> None:
    """Write a safetensors file with its real header and a hole in place of the values."""
    try:
        header = api.parse_safetensors_file_metadata(name, file, revision=revision)
    except huggingface_hub.errors.SafetensorsParsingError as error:
        raise WeightsError(f"{file} of {name} is not a safetensors file: {error}") from error
    tensors = {
        key: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
        for key, tensor in header.tensors.items()
    }
    metadata = {"__metadata__": header.metadata} if header.metadata else {}
    text = json.dumps(metadata | tensors).encode()
    text += b" " * (-len(text) % 8)
    end = max((tensor.data_offsets[1] for tensor in header.tensors.values()), default=0)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


class HeadersAlone(TensorReader):
    """Another reader's headers without its values, for plans that would read values only to compare them.

    The two names of a tied table count as equal.
    """

    def __init__(self, reader: TensorReader) -> None:
        self.folder, self.infos, self.metadata = reader.folder, reader.infos, reader.metadata
        self._reader = reader

    def file_of(self, name: str) -> Path:
        """Return the file that the other reader names."""
        return self._reader.file_of(name)

    def read_rows(self, name: str, out: torch.Tensor, start: int = 0) -> None:
        """Refuse: there are no values."""
        raise AssertionError(f"{name} was to be read, where only headers are.")

    def blocks(self, name: str, max_bytes: int = 0) -> Iterator[torch.Tensor]:
        """Yield nothing."""
        return iter(())
