"""Dtypes of weights: which are accepted, and which a user may ask for."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from vla.errors import ConfigError, WeightsError, did_you_mean
from vla.types import shown
from vla.weights.keymap import split_index
from vla.weights.tensors import Piece

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype that a user asks for; None and "auto" ask for none.

    Raises:
        ConfigError: Weights cannot have this dtype.
    """
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in FLOATS:
        raise ConfigError(
            f"dtype must be one of {', '.join(short_name(one) for one in FLOATS)}, got {dtype!r}."
        )
    return found


def check_dtype_name(value: Any, what: str) -> None:
    """Raise `WeightsError` where a config's field holds something else than a dtype that PyTorch has.

    Args:
        value: What the file holds; a mapping has those of a config's parts.
        what: File and field.
    """
    for one in value.values() if isinstance(value, Mapping) else (value,):
        is_text = isinstance(one, str)
        found = getattr(torch, one.removeprefix("torch."), None) if is_text else None
        if one not in (None, "auto") and not isinstance(found, torch.dtype):
            known = [short_name(dtype) for dtype in FLOATS]
            hint = did_you_mean(one, known) if is_text else ""
            raise WeightsError(f"{what} must be one of {', '.join(known)}, got {shown(value)}.{hint}")


def main_dtype(pieces: Mapping[str, Piece]) -> torch.dtype:
    """Return the dtype of most stored values."""
    return _sizes(pieces).most_common(1)[0][0]


def _sizes(pieces: Mapping[str, Piece]) -> Counter[torch.dtype]:
    sizes: Counter[torch.dtype] = Counter()
    for piece in pieces.values():
        sizes[piece.info.dtype] += torch.Size(piece.info.shape).numel()
    return sizes


CHANGED = "the file was changed after it was saved. Nothing was loaded."
"""What follows where the dtypes of stored tensors do not fit each other."""


def check_dtypes(folder: Path | str, pieces: Mapping[str, Piece], consequence: str = CHANGED) -> None:
    """Raise where a single tensor has another dtype than its kind.

    Files are float32 throughout, or of another dtype with some parts kept in float32. All layers of one kind
    have the same dtype.

    Args:
        folder: Where the tensors are, for the message.
        pieces: How each is made, by our names.
        consequence: End of the message where they do not fit each other.

    Raises:
        WeightsError: Names the tensor, its dtype and the one that was expected.
    """
    kinds: dict[str, list[Piece]] = defaultdict(list)
    for ours, piece in pieces.items():
        if piece.info.dtype not in FLOATS:
            raise WeightsError(
                f"{piece.stored} in {folder} is of dtype {short_name(piece.info.dtype)}; weights are "
                f"{', '.join(short_name(dtype) for dtype in FLOATS)}. Quantised checkpoints are not read."
            )
        kinds[split_index(ours)[0]].append(piece)
    for kind in kinds.values():
        counts = Counter(piece.info.dtype for piece in kind)
        usual = counts.most_common(1)[0][0]
        _refuse_odd(folder, kind, (usual,), "the other layers are", consequence)
    if pieces:
        main = main_dtype(pieces)
        allowed = (main,) if main == torch.float32 else (main, torch.float32)
        _refuse_odd(folder, pieces.values(), allowed, "most of the others are", consequence)


def _refuse_odd(
    folder: Path | str,
    pieces: Iterable[Piece],
    allowed: tuple[torch.dtype, ...],
    compared: str,
    consequence: str,
) -> None:
    for piece in pieces:
        if piece.info.dtype not in allowed:
            raise WeightsError(
                f"{piece.stored} in {folder} is {short_name(piece.info.dtype)}, where {compared} "
                f"{short_name(allowed[0])}: {consequence}"
            )


def short_name(dtype: torch.dtype) -> str:
    """Return `float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def rounded_weights(name: str, dtype: torch.dtype, number: int, faster: str) -> str:
    """Return what is to be said of trained weights that are not float32.

    Args:
        name: One of the parameters.
        dtype: Its dtype.
        number: How many there are.
        faster: The setting that makes the computation fast instead.
    """
    return (
        f"'{name}' and {number - 1} more of the trained parameters are {dtype}: there, an update "
        "below 2^-9 of a weight rounds to nothing, and most of AdamW's are smaller. Load the policy with "
        f"dtype=torch.float32 and let {faster} make the computation fast, or freeze them."
    )
