"""`vla info CHECKPOINT --diff OTHER`: which tensors differ, and by how much; whatever the two formats."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vla.checkpoints.recognise import recognise, weights_module
from vla.cli.console import console, progress_bar
from vla.cli.info.checkpoint import meta_shapes
from vla.cli.logs import print_json
from vla.errors import WeightsError
from vla.weights.formats import open_stored
from vla.weights.headers import HeadersAlone
from vla.weights.plan import plan_load
from vla.weights.source import local_folder
from vla.weights.tensors import Piece, TensorReader

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 20
"""Tensors in the printed table, those that differ most first; --json has all."""

_AT_ONCE = 2**20  # values: what is computed on the way stays in the processor's cache

_IGNORED = (
    "transformers_version",
    "dtype",
    "architectures",
    "_name_or_path",
)  # of the file, not of the policy


@dataclass(frozen=True)
class Side:
    """One of the two checkpoints, brought to names that both can have.

    Attributes:
        reader: Where the tensors are read from.
        pieces: Name -> how the tensor is made of what is stored.
        config: The policy's config, or what `config.json` holds.
        label: Policy and format.
    """

    reader: TensorReader
    pieces: Mapping[str, Piece]
    config: dict[str, Any]
    label: str


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor of the first checkpoint differs from that of the second.

    Attributes:
        name: Our name.
        max_abs: Largest absolute difference.
        relative_rms: Root mean square of the difference over that of the first; infinite where the first is
            zero.
    """

    name: str
    max_abs: float
    relative_rms: float


@dataclass
class Difference:
    """What `compare` found.

    Attributes:
        equal: Number of tensors with the same values.
        tensors: The tensors with other values, the largest relative difference first.
        only_in_first: Names that the second does not have.
        only_in_second: Names that the first does not have.
        shapes: Name -> both shapes, where they differ; such values are not compared.
        dtypes: "float32 -> bfloat16" -> number of tensors.
        config: Field -> both values, where they differ.
        labels: Policy and format of either.
    """

    equal: int = 0
    tensors: list[TensorDifference] = field(default_factory=list)
    only_in_first: list[str] = field(default_factory=list)
    only_in_second: list[str] = field(default_factory=list)
    shapes: dict[str, list[list[int]]] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    config: dict[str, list[Any]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)

    @property
    def same_weights(self) -> bool:
        """Whether both hold the same tensors with the same values, whatever their dtypes."""
        return not (self.tensors or self.only_in_first or self.only_in_second or self.shapes)


def print_diff(
    first: str, second: str, *, revision: str | None = None, token: str | None = None, as_json: bool = False
) -> None:
    """Compare two checkpoints and print what differs.

    Args:
        first: Folder, hub id or short name; downloaded where it is not here.
        second: Likewise.
        revision: Branch, tag or commit of the first, where it is on the hub.
        token: Hub token.
        as_json: Print JSON instead of tables.

    Raises:
        WeightsError: One of them is missing, damaged, or not what its format says.
    """
    folders = [local_folder(first, revision, token), local_folder(second, None, token)]
    with progress_bar("comparing") as progress:
        found = compare(*folders, progress=progress)
    if as_json:
        # JSON knows no infinity.
        tensors = [
            {**asdict(one), "relative_rms": one.relative_rms if math.isfinite(one.relative_rms) else None}
            for one in found.tensors
        ]
        values = {**vars(found), "tensors": tensors, "same_weights": found.same_weights}
        print_json({"kind": "diff", "first": first, "second": second, **values})
        return
    console().print(f"first:  {first} ({found.labels[0]})\nsecond: {second} ({found.labels[1]})")
    for line in in_sentences(found):
        console().print(line)
    if found.tensors:
        console().print(_table(found.tensors))


def compare(first: Path, second: Path, progress: Any = None) -> Difference:
    """Compare two checkpoint folders of any format, holding one tensor of each at most.

    Args:
        first: A checkpoint folder.
        second: Likewise.
        progress: Called with (tensors compared, tensors in both).

    Raises:
        WeightsError: See `print_diff`.
    """
    with ExitStack() as stack:
        a, b = _open(stack, first), _open(stack, second)
        found = Difference(labels=[a.label, b.label])
        found.only_in_first = [name for name in a.pieces if name not in b.pieces]
        found.only_in_second = [name for name in b.pieces if name not in a.pieces]
        both = [name for name in a.pieces if name in b.pieces]
        for done, name in enumerate(both, 1):
            _compare_one(found, name, a, b)
            if progress is not None:
                progress(done, len(both))
        fields = (name for name in {**a.config, **b.config} if name not in _IGNORED)
        found.config = {
            name: [a.config.get(name), b.config.get(name)]
            for name in fields
            if a.config.get(name) != b.config.get(name)
        }
    found.tensors.sort(key=lambda one: (-one.relative_rms, one.name))
    return found


def _open(stack: ExitStack, folder: Path) -> Side:
    """Open a folder under our names, or under its own where it holds no policy that is known."""
    stored = stack.enter_context(open_stored(folder))
    try:
        policy, format = recognise(stored)
    except WeightsError:
        pieces = {name: Piece(name, info) for name, info in stored.reader.infos.items()}
        return Side(stored.reader, pieces, stored.config, "no known policy: names as stored")
    config = weights_module(policy).read_config(stored, format)
    headers = type(stored)(stored.folder, HeadersAlone(stored.reader), stored.config)
    plan = plan_load(format, headers, meta_shapes(policy, config))
    values = json.loads(config.to_json_string(use_diff=False))  # as it is saved: tuples are lists
    return Side(stored.reader, plan.pieces, values, f"{policy}, format {format.name}")


def _compare_one(found: Difference, name: str, a: Side, b: Side) -> None:
    one, other = a.pieces[name], b.pieces[name]
    if one.info.dtype != other.info.dtype:
        change = f"{_short(one)} -> {_short(other)}"
        found.dtypes[change] = found.dtypes.get(change, 0) + 1
    if one.shape != other.shape:
        found.shapes[name] = [list(one.shape), list(other.shape)]
        return
    largest, squares, reference = 0.0, 0.0, 0.0
    for x, y in _aligned(_blocks(a, name), _blocks(b, name)):
        for start in range(0, len(x), _AT_ONCE):
            part, other_part = (_wide(side[start : start + _AT_ONCE]) for side in (x, y))
            difference = part - other_part
            largest = max(largest, difference.abs().max().item())
            squares += torch.linalg.vector_norm(difference, dtype=torch.float64).item() ** 2
            reference += torch.linalg.vector_norm(part, dtype=torch.float64).item() ** 2
    if largest == 0:
        found.equal += 1
        return
    relative = math.sqrt(squares / reference) if reference > 0 else math.inf
    found.tensors.append(TensorDifference(name, largest, relative))


def _blocks(side: Side, name: str) -> Iterator[torch.Tensor]:
    """Yield a tensor of ours in blocks of rows, flat; whole where it has to be rearranged."""
    piece = side.pieces[name]
    if piece.op is None and piece.index is None:
        left = piece.rows
        for block in side.reader.blocks(piece.stored):
            yield (block if left is None else block[:left]).reshape(-1)
            left = None if left is None else left - len(block)
            if left is not None and left <= 0:
                return
        return
    whole = side.reader.read(piece.stored, piece.index)
    whole = whole if piece.op is None else piece.op(whole)
    yield (whole if piece.rows is None else whole[: piece.rows]).reshape(-1)


def _aligned(
    first: Iterator[torch.Tensor], second: Iterator[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cut two sequences of flat blocks of equal total length into pairs of equal length.

    Every block is used up before the next one of its sequence is asked for, since they may share a buffer.
    """
    x = y = torch.empty(0)
    while True:
        x = x if len(x) else next(first, x)
        y = y if len(y) else next(second, y)
        length = min(len(x), len(y))
        if not length:
            return
        yield x[:length], y[:length]
        x, y = x[length:], y[length:]


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Return values in which differences are exact enough: float32 for weights, float64 for all else."""
    return x.float() if x.dtype in (torch.float32, torch.bfloat16, torch.float16) else x.double()


def _short(piece: Piece) -> str:
    return str(piece.info.dtype).removeprefix("torch.")


def in_sentences(found: Difference) -> list[str]:
    """Return what differs, one sentence a kind."""
    lines = []
    if found.same_weights:
        lines.append(f"The weights are the same: {found.equal} tensors with equal values.")
    else:
        lines.append(f"{found.equal} tensors are equal, {len(found.tensors)} differ.")
    lines += [f"dtype {change}: {count} tensors" for change, count in found.dtypes.items()]
    lines += [f"shape of {name}: {one} -> {other}" for name, (one, other) in found.shapes.items()]
    for which, names in (("first", found.only_in_first), ("second", found.only_in_second)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"only in the {which}: {', '.join(names[:SHOWN])}{more}")
    lines += [f"config {name}: {one} -> {other}" for name, (one, other) in found.config.items()]
    return lines


def _table(tensors: list[TensorDifference]) -> "Table":
    from rich.table import Table

    shown = tensors[:SHOWN]
    title = f"the {len(shown)} of {len(tensors)} that differ most" if len(tensors) > SHOWN else "what differs"
    table = Table(title=title, title_justify="left")
    table.add_column("tensor")
    table.add_column("largest difference", justify="right")
    table.add_column("relative RMS", justify="right")
    for one in shown:
        table.add_row(one.name, f"{one.max_abs:.4g}", f"{one.relative_rms:.4g}")
    return table
