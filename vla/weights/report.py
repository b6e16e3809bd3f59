"""Everything that is wrong with a checkpoint in one message, in its names and in ours."""

import difflib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vla.errors import WeightsError
from vla.weights.formats import Format, Names
from vla.weights.keymap import split_index

SHOWN = 5
"""Names of one kind that a message lists; the others are counted."""


@dataclass
class Problems:
    """What is wrong, by kind; each entry is a phrase that names the tensor."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """Return one sentence per kind that occurs."""
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of the wrong shape", self.wrong_shape),
            ("stored twice", self.twice),
        )
        return [f"{len(found)} {kind}: {_some(found)}." for kind, found in kinds if found]


def check_complete(format: Format, folder: Path, names: Names, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless a file holds exactly the wanted tensors.

    Raises:
        WeightsError: Lists what is missing, unexpected, of the wrong shape or stored twice.
    """
    problems = Problems()
    absent = _missing(format, names, wanted, problems)
    _shapes(names, wanted, problems)
    surplus = _surplus(names, wanted, problems)
    known = absent or [name for ours in wanted for name in format.table.of_ours(ours)]
    for name in surplus[:SHOWN]:
        problems.unexpected.append(f"{name}{_nearest(name, known, 'missing' if absent else 'known')}")
    problems.unexpected += surplus[SHOWN:]
    if sentences := problems.sentences():
        raise WeightsError(
            f"{folder} (format '{format.name}') does not hold exactly this model's tensors. "
            f"{' '.join(sentences)} Nothing was loaded."
        )


def _missing(
    format: Format, names: Names, wanted: Mapping[str, tuple[int, ...]], problems: Problems
) -> list[str]:
    """Collect wanted tensors that the file lacks; return the names that it should have them under."""
    spelled = {canonical: stored for stored, canonical in names.canonical.items()}
    grouped: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for ours in wanted:
        if ours not in names.found:
            grouped[tuple(format.table.of_ours(ours))].append(ours)
    absent = []
    for theirs, ours in grouped.items():
        present = [spelled[name] for name in theirs if name in spelled]
        if any(name in names.misfits for name in present):
            continue  # reported already, as a wrong shape
        if present:  # a stack that ends too early
            held = len(wanted) and sum(split_index(name)[0] == split_index(ours[0])[0] for name in wanted)
            problems.wrong_shape.append(
                f"{present[0]} stacks {held - len(ours)} layers, expected {held} ({ours[0]} and on)"
            )
            continue
        file_names = [spell_like(name, spelled) for name in theirs]
        absent += file_names
        label = " or ".join(file_names) or ours[0]
        more = f" and {len(ours) - 1} more" if len(ours) > 1 else ""
        problems.missing.append(label if label == ours[0] else f"{label} (ours: {ours[0]}{more})")
    return absent


def _shapes(names: Names, wanted: Mapping[str, tuple[int, ...]], problems: Problems) -> None:
    """Collect what was found under a wanted name with another shape, or in too many places."""
    said = set()
    for stored, why in names.misfits.items():
        problems.wrong_shape.append(f"{stored}: {why.rstrip('.')}")
    for ours, shape in wanted.items():
        sources = names.found.get(ours, [])
        for source in sources:
            piece = source.piece
            if piece.info.shape == tuple(shape) or piece.stored in said:
                continue
            said.add(piece.stored)
            flipped = len(shape) > 1 and piece.info.shape == tuple(reversed(shape))
            made = "" if piece.op is None and piece.index is None else " (as ours)"
            problems.wrong_shape.append(
                f"{piece.stored}: stored {list(piece.info.shape)}{made}, expected {list(shape)}"
                f"{': it looks transposed' if flipped else ''}"
            )
        spellings = Counter(source.canonical for source in sources)
        for canonical, count in spellings.items():
            if count > 1:
                stored = [source.piece.stored for source in sources if source.canonical == canonical]
                problems.twice.append(" and ".join(stored))


def _surplus(names: Names, wanted: Mapping[str, tuple[int, ...]], problems: Problems) -> list[str]:
    """Return stored names that no wanted tensor is made of; a stack that is too long has a wrong shape."""
    used = {source.piece.stored for ours in wanted for source in names.found.get(ours, [])}
    surplus = list(names.unknown)
    for ours, sources in names.found.items():
        for source in sources if ours not in wanted else []:
            stored = source.piece.stored
            if stored not in used:
                surplus.append(stored)
            elif source.is_stacked:
                problems.wrong_shape.append(f"{stored} holds a layer too many ({ours})")
                used.discard(stored)
    return list(dict.fromkeys(surplus))


def spell_like(canonical: str, spelled: Mapping[str, str]) -> str:
    """Write a name of the table as the file at hand would spell it, judging by the file's nearest name.

    Args:
        canonical: The name in the format's one spelling.
        spelled: Names in the one spelling -> as the file has them.
    """
    parts = canonical.split(".")
    for end in range(len(parts) - 1, 0, -1):
        start = ".".join(parts[:end]) + "."
        relative = next((name for name in spelled if name.startswith(start)), None)
        if relative is None:
            continue
        tail = relative.removeprefix(start)
        if spelled[relative].endswith("." + tail) or spelled[relative] == relative:
            return spelled[relative].removesuffix(tail) + canonical.removeprefix(start)
    leads = {stored.removesuffix(name) for name, stored in spelled.items() if stored.endswith(name)}
    return (leads.pop() if len(leads) == 1 else "") + canonical


def _some(phrases: list[str]) -> str:
    more = f", and {len(phrases) - SHOWN} more" if len(phrases) > SHOWN else ""
    return "; ".join(phrases[:SHOWN]) + more


def _nearest(name: str, options: list[str], kind: str) -> str:
    found = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f" (nearest {kind} name: {found[0]})" if found else ""
