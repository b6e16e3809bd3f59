"""Published formats and ours: what a folder holds, by which names, and the strict plan to load or write it.

A `Format` is data: a table of names, the spellings that turn a file's names into those of the table, and what
may be left out. `plan_load` says how every tensor of a model is made from stored ones, or raises one error
with all that is wrong; it reads no tensor except the two names of a tied pair.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vla.atomic import read_json
from vla.errors import ShapeError, WeightsError, remedy
from vla.paths import is_hidden
from vla.weights.dtypes import check_dtype_name
from vla.weights.files.open import open_tensors
from vla.weights.files.row_shards import has_row_shards
from vla.weights.keymap import KeyMapping, KeyTable, Spelling, respell
from vla.weights.run_folder import PICKLES
from vla.weights.tensors import Piece, TensorInfo, TensorReader

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]

VLA_CONFIG = "vla_config"
"""Key of the tensors' metadata under which files of other formats carry our config."""

BASE_FILE = "adapter_base.json"
"""Names the base of an adapter that was trained here; lies next to `peft`'s two files."""
ADAPTER_FILES = (BASE_FILE, "adapter_config.json", "adapter_model.safetensors")

LORA = re.compile(r"(^|[._])lora_[abAB]($|[._])|\.lora_(embedding|magnitude)")


@dataclass(frozen=True)
class Stored:
    """An opened checkpoint folder.

    Args:
        folder: Where it lies.
        reader: Its tensors.
        config: Its `config.json`; empty where it has none.
    """

    folder: Path
    reader: TensorReader
    config: dict[str, Any]


@contextmanager
def open_stored(folder: Path | str) -> Iterator[Stored]:
    """Open a checkpoint folder, whatever its format.

    Raises:
        WeightsError: It holds no weights, pickled weights, or an adapter instead of a model; or its files
            are damaged.
    """
    folder = Path(folder)
    _refuse_other_contents(folder)
    config = _read_config_file(folder / "config.json")
    with open_tensors(folder) as reader:
        lora = next((name for name in reader.infos if LORA.search(name)), None)
        if lora is not None:
            raise WeightsError(
                f"{folder} holds LoRA matrices ({lora}). They mean nothing without the scale that they were "
                "trained with: merge them into the base model where they were trained, and open the result."
            )
        yield Stored(folder, reader, config)


def _refuse_other_contents(folder: Path) -> None:
    if not folder.is_dir():
        raise WeightsError(f"{folder} is not a folder; give the folder that holds the weights.")
    names = sorted(path.name for path in folder.iterdir() if not is_hidden(path))
    if not names:
        raise WeightsError(f"{folder} is empty.")
    if BASE_FILE in names:
        raise WeightsError(
            f"{folder} holds an adapter alone, and this needs a whole model: `vla merge {folder} DST` writes "
            "one. (vla.AutoPolicy.from_pretrained opens adapter and base together.)"
        )
    of_peft = [name for name in names if name.startswith("adapter_")]
    if of_peft and (folder / "config.json").exists() and "model.safetensors" in names:
        raise WeightsError(
            f"{folder} holds a whole model, and an adapter of PEFT was saved into the same folder: move the "
            f"adapter's files ({', '.join(of_peft)}) into a folder of their own, and the model is as it was."
        )
    if "adapter_config.json" in names or any(name.startswith("adapter_model.") for name in names):
        raise WeightsError(
            f"{folder} holds a LoRA adapter (adapter_config.json), not a whole model: merge it into its base "
            "model first (peft: merge_and_unload, then save_pretrained), and open the result."
        )
    for name in names:
        # What is read passes over a link to nothing as if it were not there.
        if name.endswith(_READ) and (folder / name).is_symlink() and not (folder / name).exists():
            raise WeightsError(
                f"{folder / name} is a link to nothing ({(folder / name).readlink()}): copy the "
                f"file itself; {remedy(folder / name)}."
            )
    has_safetensors = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    pickles = [name for name in names if name.endswith(PICKLES) and not _TRAINING_STATE.search(name)]
    is_tree = "_METADATA" in names or "manifest.ocdbt" in names or "params" in names
    if pickles and not has_safetensors and not is_tree and not has_row_shards(folder):
        raise WeightsError(
            f"{folder} holds pickled weights ({pickles[0]}), and opening a pickle can run any code: save "
            "them as safetensors where they come from."
        )


_READ = (".safetensors", ".json", ".model")
"""Endings of the files of a checkpoint that are read."""

_TRAINING_STATE = re.compile(r"train(ing|er)?_(state|args)|optimizer|scheduler|scaler|rng_state")
"""What lies next to the weights of a training run and never holds them."""


def _read_config_file(path: Path) -> dict[str, Any]:
    config = read_json(path, WeightsError) if path.exists() else {}
    for name in ("dtype", "torch_dtype"):
        check_dtype_name(config.get(name), f"{path}: '{name}'")
    return config


class Zeros(NamedTuple):
    """A tensor that other readers of a format expect though nothing uses it; it is written as zeros.

    Attributes:
        name: In the format's one spelling.
        sizes: Each axis as (one of our tensors, its axis).
    """

    name: str
    sizes: tuple[tuple[str, int], ...]


class StoredTensor(NamedTuple):
    """One tensor of ours as found in a file.

    Attributes:
        piece: How it is made.
        canonical: The stored name in the format's one spelling.
        is_stacked: Whether the stored array holds all layers.
    """

    piece: Piece
    canonical: str
    is_stacked: bool


@dataclass
class Names:
    """A file's names, read by a format's table.

    Args:
        found: Our name -> where it is stored; more than one entry for a tied pair, or a duplicate.
        canonical: Stored name -> its one spelling.
        junk: Stored name -> why it is left out.
        unknown: Stored names that the table does not have.
        misfits: Stored name -> why its shape cannot be what the table says.
    """

    found: dict[str, list[StoredTensor]] = field(default_factory=lambda: defaultdict(list))
    canonical: dict[str, str] = field(default_factory=dict)
    junk: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    misfits: dict[str, str] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of ours that was found."""
        return {name: sources[0].piece.info.shape for name, sources in self.found.items()}


@dataclass(frozen=True)
class Format:
    """One format of one policy's checkpoints.

    Args:
        name: "vla", "lerobot", "transformers", "openpi" or "openpi-jax".
        table: Our names and the format's, in one spelling.
        claims: Whether a folder's files besides the tensors fit this format.
        spellings: From the names in a file to the one spelling.
        junk: Patterns in the one spelling, each with the reason why such a tensor is left out.
        written: From the one spelling to what is written; None where the format cannot be written.
        zeros: Tensors to write besides ours.
        crops_rows: Whether rows of the token table beyond the model's are left out.
    """

    name: str
    table: KeyTable
    claims: Callable[[Stored], bool]
    spellings: tuple[Spelling, ...] = ()
    junk: tuple[Spelling, ...] = ()
    written: tuple[Spelling, ...] | None = None
    zeros: tuple[Zeros, ...] = ()
    crops_rows: bool = False

    def read_names(self, infos: Mapping[str, TensorInfo]) -> Names:
        """Translate a file's names to ours; no tensor is read."""
        names = Names()
        for stored, info in infos.items():
            canonical = names.canonical[stored] = respell(stored, self.spellings)
            reason = next((why for pattern, why in self.junk if re.search(pattern, canonical)), None)
            rules = self.table.of_theirs(canonical)
            if reason is not None:
                names.junk[stored] = reason
            elif not rules:
                names.unknown.append(stored)
            for rule, index in [] if reason is not None else rules:
                try:
                    for ours, piece in _pieces(rule, index, stored, info):
                        names.found[ours].append(StoredTensor(piece, canonical, rule.is_stacked))
                except ShapeError as error:
                    names.misfits[stored] = str(error)
        return names

    def matches(self, stored: Stored) -> bool:
        """Whether the folder is of this format: its other files fit, and most tensors have its names."""
        names = self.read_names(stored.reader.infos)
        return self.claims(stored) and len(names.unknown) * 2 < len(names.canonical)


def _pieces(
    rule: KeyMapping, index: str | None, stored: str, info: TensorInfo
) -> Iterator[tuple[str, Piece]]:
    """Yield our tensors that one row of the table makes from one stored array."""
    shape = info.shape
    if rule.is_stacked:
        if not shape:
            raise ShapeError("it is a scalar, where a stack of layers was expected.")
        shape = shape[1:]
    made = TensorInfo(shape if rule.layout is None else rule.layout.shape(shape), info.dtype)
    if not rule.is_stacked:
        yield rule.ours.replace("{i}", index or ""), Piece(stored, made, op=rule.layout)
        return
    for layer in range(info.shape[0]):
        yield rule.ours.replace("{i}", str(layer)), Piece(stored, made, index=layer, op=rule.layout)


def format_names(formats: Iterable[Format]) -> list[str]:
    """Return the formats' names, in order."""
    return [format.name for format in formats]
