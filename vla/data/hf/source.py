"""Where a table of `datasets` is: a folder or file of this machine, or a snapshot of a hub dataset.

`hf:` before a path or hub id asks for one. A folder may be what `Dataset.save_to_disk` wrote, or hold
anything that `load_dataset` reads (parquet, json, csv, ...); of a hub dataset the whole repository is
downloaded at one commit, and read as such a folder.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from vla.data.hf.files import BUILDERS, files_of
from vla.data.hf.options import TableOptions
from vla.data.hub import address_hint, dataset_path, download_all, holds_policy, refuse_pointer
from vla.errors import DatasetError, did_you_mean
from vla.paths import kept
from vla.types import COMMIT, HUB_ID, as_text

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "hf:"
"""What a path begins with that names a table of `datasets` rather than a LeRobot dataset."""

_MOST_OF_A_REASON = 300  # characters
_OF_SAVED = ("dataset_info.json", "state.json")
"""What `Dataset.save_to_disk` writes next to the rows."""
_SLICES = ("[", "+", "(")
"""What tells parts of splits, as `datasets` writes them, from the name of a split."""


@dataclass(frozen=True)
class Table:
    """A table, and where it comes from.

    Attributes:
        rows: The table itself, nested columns flattened: `observation.state` for `state` within
            `observation`. Images and videos are not decoded.
        root: Folder that relative paths in it begin at.
        revision: Commit of a hub dataset, else None.
        name: What to call it in messages.
    """

    rows: "Dataset"
    root: Path
    revision: str | None
    name: str


def is_table(path: str | Path) -> bool:
    """Return whether a path asks for a table of `datasets`."""
    return str(path).startswith(PREFIX)


def open_table(name: "str | Path | Dataset", options: TableOptions, revision: str | None = None) -> Table:
    """Open a table.

    Args:
        name: Folder, file or hub id, with or without `hf:`; or a table that is open already.
        options: Its split and subset are taken.
        revision: Branch, tag or commit of a hub dataset.

    Raises:
        DatasetError: It is not there, cannot be read, has no such split or subset, is a LeRobot dataset or a
            folder with far more than a table, or a file of it is a Git LFS pointer.
    """
    if not isinstance(name, str | Path):
        return _from_dataset(name, options, revision)
    revision = None if revision is None else as_text(revision, "revision")
    bare = str(name).removeprefix(PREFIX)
    path = dataset_path(bare)
    if not bare or not path.exists():
        if not HUB_ID.fullmatch(bare):
            raise DatasetError(
                f"There is no folder or file '{bare}' for {PREFIX}{bare}, and it is not a hub id of the form "
                "owner/name either."
                f"{address_hint(bare)}"
            )
        path = download_all(bare, revision)
        revision = path.name if COMMIT.fullmatch(path.name) else revision
    elif revision is not None:
        raise DatasetError(f"{path} is local, so revision='{revision}' means nothing: leave it out.")
    if (path / "meta" / "info.json").is_file():
        raise DatasetError(
            f"{bare} is a LeRobot dataset, whose videos and episodes are described in meta/: leave out "
            f"'{PREFIX}'."
        )
    if path.is_dir() and holds_policy(path):
        raise DatasetError(f"{PREFIX}{bare} holds a policy or a training run, which is not a table.")
    shown = f"{PREFIX}{bare}"
    for file in files_of(path, shown):
        # A pointer is a text file, which csv and json might take.
        if file.suffix.lower() in BUILDERS and file.is_file():
            refuse_pointer(file)
    table = _choose_split(_load(path, shown, options), shown, options)
    if not len(table):
        raise DatasetError(f"{shown} is empty: it has no rows.")
    return Table(_undecoded(table), path if path.is_dir() else path.parent, revision, shown)


def _from_dataset(table: "Dataset", options: TableOptions, revision: str | None = None) -> Table:
    """Wrap a table that is open already.

    Raises:
        DatasetError: It is something else, or empty, or has a transform; or a revision, a subset or another
            split is given, which means nothing here.
    """
    import datasets

    if revision is not None:
        raise DatasetError(
            f"The table is open already, so revision={revision!r} means nothing: leave it out."
        )
    if not isinstance(table, datasets.Dataset):
        raise DatasetError(
            f"Expected a datasets.Dataset, got {type(table).__name__}: of a DatasetDict give one split; an "
            "IterableDataset has no frame numbers, and cannot be read at random."
        )
    for name, own in (("split", str(table.split)), ("subset", table.config_name)):
        if (wanted := getattr(options, name)) not in (None, own):
            raise DatasetError(
                f"The table is open already, so {name}={wanted!r} means nothing: leave it out, or load "
                f"that {name} (this table's {name} is {own})."
            )
    if table.format["type"] == "custom":
        raise DatasetError(
            "The datasets.Dataset has a transform (set_transform, with_transform), which is applied where "
            "rows are read, and would not be seen here. Apply it to the table, Dataset.map(...), and give "
            "the result; or take it off, Dataset.with_format(None)."
        )
    if not len(table):
        raise DatasetError("The datasets.Dataset is empty: it has no rows.")
    return Table(_undecoded(table), kept("."), None, "the datasets.Dataset")


def _load(path: Path, shown: str, options: TableOptions) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    saved = path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if saved and options.subset is not None:
        raise DatasetError(f"{shown} was written by save_to_disk, which has no subsets: leave out 'subset'.")
    if path.name in _OF_SAVED and all((path.parent / name).is_file() for name in _OF_SAVED):
        raise DatasetError(
            f"{shown} only describes the table in its folder: name the folder, {PREFIX}{path.parent}."
        )
    builder = BUILDERS.get(path.suffix.lower())
    if path.is_file() and builder is None:
        raise DatasetError(f"{shown} is a file of an unknown kind; known are {', '.join(BUILDERS)}.")
    try:
        if saved:
            return datasets.load_from_disk(str(path))
        if path.is_file():
            assert builder is not None
            return datasets.load_dataset(builder, data_files=str(path), name=options.subset)
        return datasets.load_dataset(str(path), name=options.subset)
    except (
        DatasetsError,
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        ImportError,
    ) as error:
        # Scripts (.py) are named by the error itself.
        if not any(file.suffix.lower() in (*BUILDERS, ".py") for file in files_of(path, shown)):
            raise DatasetError(
                f"{shown} cannot be read as a dataset: no file in it is a table ({', '.join(BUILDERS)})."
            ) from error
        where = next((file for file in files_of(path, shown) if not _is_whole(file, saved)), None)
        named = "" if where is None else f"{where} is damaged: "
        raise DatasetError(f"{shown} cannot be read as a dataset: {named}{_reason(error)}") from error


def _is_whole(file: Path, saved: bool) -> bool:
    """Whether a file can be read as what its name says, as far as that is seen without reading its rows.

    Args:
        file: Any file or folder.
        saved: Whether `save_to_disk` wrote it: then each JSON file holds one object.
    """
    try:
        if file.suffix == ".parquet":
            pq.ParquetFile(file).close()
        elif file.suffix == ".arrow":
            with pa.memory_map(str(file)) as mapped:
                pa.ipc.open_stream(mapped).read_all()
        elif file.suffix == ".json" and saved:
            return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (pa.ArrowException, OSError, ValueError, RecursionError):
        return False
    return True


def _choose_split(loaded: Any, shown: str, options: TableOptions) -> "Dataset":
    if not isinstance(loaded, Mapping):
        if options.split in (None, str(loaded.split)):
            return loaded
        if loaded.split is None:
            raise DatasetError(f"{shown} is one table without splits: there is no split '{options.split}'.")
        loaded = {str(loaded.split): loaded}
    splits: list[str] = [str(name) for name in loaded]
    name = options.split or (splits[0] if len(splits) == 1 else "train")
    if name in splits:
        return loaded[name]
    if options.split is not None and any(sign in name for sign in _SLICES):
        return _sliced(loaded, shown, name)
    which = "has no split 'train'" if options.split is None else f"has no split '{name}'"
    raise DatasetError(
        f"{shown} {which}; its splits are {splits}. Name one of them (data.split, "
        f"--split).{did_you_mean(name, splits)}"
    )


def _sliced(loaded: "Mapping[str, Dataset]", shown: str, wanted: str) -> "Dataset":
    """Return parts of splits as `datasets` writes them, "train[:50%]+test"."""
    import datasets

    lengths = {str(name): len(rows) for name, rows in loaded.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(wanted).to_absolute(lengths)
    except (ValueError, AssertionError, TypeError) as error:
        raise DatasetError(
            f"{shown} has no split '{wanted}': {_reason(error)} Its splits are {list(lengths)}; parts of "
            "them are written 'train[:50%]', 'train[10:20]' or 'train+test', as load_dataset takes them."
        ) from error
    chosen = [loaded[part.splitname].select(range(part.from_, part.to)) for part in parts]
    try:
        return datasets.concatenate_datasets(chosen) if len(chosen) > 1 else chosen[0]
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise DatasetError(f"{shown}: '{wanted}' cannot be put together: {_reason(error)}") from error


def _undecoded(table: "Dataset") -> "Dataset":
    """Return the table with nested columns flattened, and with images and videos as they are stored."""
    import datasets

    table = table.with_format(None)
    for key, feature in table.features.items():
        if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:  # an image by its storage
            table = table.cast_column(key, datasets.Image(decode=False))
    table = _flattened(table)
    for key, feature in table.features.items():
        if isinstance(feature, datasets.Image | datasets.Video) and feature.decode:
            table = table.cast_column(key, type(feature)(decode=False))
    return table


def _flattened(table: "Dataset") -> "Dataset":
    import datasets

    if not any(isinstance(feature, dict) for feature in table.features.values()):
        return table
    decoded = [datasets.Image, datasets.Video]
    for key, feature in table.features.items():
        # An image that is not decoded would be flattened into its bytes and its path.
        if type(feature) in decoded and not feature.decode:
            table = table.cast_column(key, type(feature)())
    return table.flatten()


def _reason(error: BaseException) -> str:
    """Return the first line of the error that began it; `datasets` wraps it in less telling ones."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = str(error).splitlines()
    reason = lines[0].rstrip(".") if lines and lines[0].strip() else type(error).__name__
    return f"{reason[:_MOST_OF_A_REASON]}."
