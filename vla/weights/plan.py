"""The strict plan: how every tensor of a model is made from a folder's, or why it cannot be."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vla.errors import WeightsError
from vla.weights.dtypes import check_dtypes, short_name
from vla.weights.formats import Format, Names, Stored
from vla.weights.keymap import respell
from vla.weights.report import check_complete
from vla.weights.stream import Fill
from vla.weights.tensors import Piece, TensorInfo, TensorReader

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LoadPlan:
    """How every tensor of a model is made from stored ones.

    Args:
        pieces: Our name -> piece, for exactly the tensors that were wanted.
        dropped: Stored name -> why it is left out.
        notes: Sentences for the user.
    """

    pieces: dict[str, Piece]
    dropped: dict[str, str]
    notes: tuple[str, ...]


def plan_load(format: Format, stored: Stored, wanted: Shapes) -> LoadPlan:
    """Plan how each wanted tensor is made from a folder's.

    Args:
        format: The folder's format.
        stored: The opened folder.
        wanted: Our names and shapes, exactly those of the model.

    Raises:
        WeightsError: A tensor is missing, unknown, of the wrong shape or dtype, stored twice, or the two
            names of the token table hold different values; all such tensors are named, with the nearest
            names.
    """
    names = format.read_names(stored.reader.infos)
    notes = _crop_rows(names, wanted) if format.crops_rows else []
    check_complete(format, stored.folder, names, wanted)
    pieces = {ours: names.found[ours][0].piece for ours in wanted}
    check_dtypes(stored.folder, pieces)
    dropped = dict(names.junk)
    for ours in wanted:
        first, *others = names.found[ours]
        for other in others:
            _refuse_difference(stored.reader, first.piece, other.piece)
            dropped[other.piece.stored] = f"the same values as {first.piece.stored}, to which it is tied"
    for name, reason in dropped.items():
        logger.info("%s: left out %s (%s).", stored.folder, name, reason)
    for note in notes:
        logger.info("%s: %s", stored.folder, note)
    return LoadPlan(pieces, dropped, tuple(notes))


def _crop_rows(names: Names, wanted: Shapes) -> list[str]:
    """Shorten token tables that have more rows than the model, with a note."""
    notes = []
    for ours in (name for name in wanted if name.endswith("embed_tokens.weight")):
        for at, source in enumerate(names.found.get(ours, [])):
            piece, rows = source.piece, wanted[ours][0]
            if len(piece.info.shape) == 2 and piece.info.shape[0] > rows:
                info = TensorInfo((rows, piece.info.shape[1]), piece.info.dtype)
                names.found[ours][at] = source._replace(piece=Piece(piece.stored, info, rows=rows))
                notes.append(
                    f"{piece.stored} has {piece.info.shape[0]} rows, of which the first {rows} are the "
                    "model's tokens; the others are left out."
                )
    return notes


def _refuse_difference(reader: TensorReader, one: Piece, other: Piece) -> None:
    """Compare two stored names of one tensor, block by block, as far as the model reads them."""
    if one.info.dtype != other.info.dtype:
        raise WeightsError(
            f"{one.stored} and {other.stored} in {reader.folder} are two names of one tensor, but one is "
            f"{short_name(one.info.dtype)} and the other {short_name(other.info.dtype)}."
        )
    rows = one.info.shape[0]
    for a, b in zip(reader.blocks(one.stored), reader.blocks(other.stored), strict=False):
        count = min(len(a), len(b), rows)
        if not torch.equal(a[:count], b[:count]):
            raise WeightsError(
                f"{one.stored} and {other.stored} in {reader.folder} are two names of one tensor, but they "
                "hold different values, so it is unclear which is meant. Remove the one that is wrong."
            )
        rows -= count
        if rows <= 0:
            return


def plan_write(format: Format, shapes: Shapes, dtype: torch.dtype = torch.float32) -> dict[str, str | Fill]:
    """Plan under which names our tensors are written.

    Args:
        format: The format to write.
        shapes: Our names and shapes.
        dtype: Dtype of tensors that are not ours and are written as zeros.

    Returns:
        Name in the file -> our name, or zeros.

    Raises:
        WeightsError: The format cannot be written, or has no name for one of the tensors.
    """
    if format.written is None:
        raise WeightsError(f"The format '{format.name}' can be read, but not written.")
    plan: dict[str, str | Fill] = {}
    for ours in shapes:
        theirs = format.table.of_ours(ours)
        if not theirs:
            raise WeightsError(f"The format '{format.name}' has no name for {ours}.")
        plan[respell(theirs[0], format.written)] = ours
    for zeros in format.zeros:
        shape = tuple(shapes[name][axis] for name, axis in zeros.sizes)
        plan[respell(zeros.name, format.written)] = Fill(shape, dtype)
    return plan
