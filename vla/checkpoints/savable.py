"""What is saved can be opened again: the values are finite, and of dtypes that are read."""

from collections.abc import Mapping

import torch

from vla.errors import WeightsError
from vla.weights.dtypes import check_dtypes
from vla.weights.tensors import Piece, TensorInfo


def check_savable(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise where weights that are to be saved could not be opened again.

    Args:
        tensors: The parameters to be written, by name; those without values (on the meta device) are not
            looked at.

    Raises:
        WeightsError: A value is not finite, or a dtype is not read or not that of the other layers.
    """
    pieces = {name: Piece(name, TensorInfo(tuple(one.shape), one.dtype)) for name, one in tensors.items()}
    check_dtypes(
        "the policy to be saved", pieces, "its checkpoint could not be opened. Convert all of it (policy.to)."
    )
    for name, tensor in tensors.items():
        check_finite(name, tensor)


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raise where a tensor that is to be saved holds NaN or infinity.

    Raises:
        WeightsError: Names the tensor, the place and the value.
    """
    if tensor.is_meta or not tensor.numel() or not tensor.is_floating_point():
        return
    values = tensor.detach()
    if all(bool(end.isfinite()) for end in values.aminmax()):  # without a copy of the tensor, unlike isfinite
        return
    place = tuple((~values.isfinite()).nonzero()[0].tolist())
    raise WeightsError(
        f"'{name}' holds {values[place].item()} at {list(place)}, the first value that is not finite: the "
        "weights have diverged, so they are not saved. Load the last checkpoint that is finite."
    )
