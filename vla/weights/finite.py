"""Refuse NaN and infinity while reading, on raw bits, cheaply.

A value is not finite where all bits of its exponent are set. Shifting the sign out leaves an unsigned
integer that is smallest-to-largest in magnitude, so one maximum per chunk decides; a chunk that has just been
read still lies in the cache, and numpy lets other threads run meanwhile.
"""

import math
import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla.errors import WeightsError, remedy

CHUNK_BYTES = 2**19
"""Bytes checked at once: with the shifted copy it fits into the second-level cache of one core.

Measured for reading 2 GB with the check: 128 KiB to 1 MiB are alike, above that the cache is missed.
"""

_FORMS: dict[torch.dtype, tuple[type[np.unsignedinteger], int]] = {
    torch.float16: (np.uint16, 0x7C00 << 1),
    torch.bfloat16: (np.uint16, 0x7F80 << 1),
    torch.float32: (np.uint32, 0x7F800000 << 1),
    torch.float64: (np.uint64, 0x7FF0000000000000 << 1),
}
"""Float dtype -> the integer of its width, and the exponent's bits shifted by one."""

_per_thread = threading.local()


def raw_bytes(tensor: Tensor) -> np.ndarray:
    """Return the bytes `[n]` of a contiguous CPU tensor, sharing its memory."""
    assert tensor.is_contiguous()
    assert tensor.device.type == "cpu"
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def first_not_finite(raw: np.ndarray, dtype: torch.dtype) -> int | None:
    """Return the position of the first NaN or infinity, or None where there is none.

    Args:
        raw: Bytes `[n]` of values of `dtype`; read-only use.
        dtype: What they are. Anything that is not a float is finite.
    """
    if dtype not in _FORMS or raw.size == 0:
        return None
    integer, exponent = _FORMS[dtype]
    bits = raw.view(integer)
    step = CHUNK_BYTES // dtype.itemsize
    for start in range(0, bits.size, step):
        shifted = np.left_shift(
            bits[start : start + step], 1, out=_scratch(integer)[: min(step, bits.size - start)]
        )
        if shifted.max() >= exponent:
            return start + int(np.argmax(shifted >= exponent))
    return None


def refuse_not_finite(
    rows: Tensor, name: str, file: Path, shape: tuple[int, ...] | None = None, start: int = 0
) -> None:
    """Raise `WeightsError` naming tensor, file, place and value where a value is NaN or infinite.

    Args:
        rows: Contiguous CPU tensor of any dtype and shape.
        name: The key, for the message.
        file: Where it was read from.
        shape: Shape of the tensor that the rows belong to; None where they are all of it.
        start: Which row of it is the first.
    """
    at = first_not_finite(raw_bytes(rows), rows.dtype)
    if at is not None:
        shape = tuple(rows.shape) if shape is None else shape
        position = start * math.prod(shape[1:]) + at
        raise not_finite_error(name, file, rows.reshape(-1)[at].item(), position, shape)


def not_finite_error(
    name: str, file: Path, value: float, position: int, shape: tuple[int, ...]
) -> WeightsError:
    """Return the error for a value at a flat `position` of a tensor of `shape`."""
    where = [int(i) for i in np.unravel_index(position, shape)] if shape else []
    return WeightsError(
        f"'{name}' in {file} holds {value} at {where}, the first value that is not finite: the file is "
        f"damaged or the weights have diverged; {remedy(file)}."
    )


def _scratch(integer: type[np.unsignedinteger]) -> np.ndarray:
    """One chunk of memory per thread, so that its pages are faulted in once."""
    if not hasattr(_per_thread, "scratch"):
        _per_thread.scratch = np.empty(CHUNK_BYTES, np.uint8)
    return _per_thread.scratch.view(integer)
