"""What is saved can be opened again: config and tensors fit, values are finite, dtypes are read."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from vla.checkpoints.agreement import check_pipelines
from vla.checkpoints.empty import empty_policy
from vla.checkpoints.module import PolicyModule
from vla.errors import ConfigError, WeightsError
from vla.weights.dtypes import check_dtypes
from vla.weights.tensors import Piece, TensorInfo


def check_savable(policy: PolicyModule, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
    """Raise where a whole policy that is to be saved could not be opened again.

    Args:
        policy: The policy, with config and pipelines.
        state_dict: Tensors to be written in place of its own.

    Raises:
        WeightsError: A tensor is missing, superfluous, of another shape than the config says, without values
            or not finite; or a dtype is not read or not that of the other layers.
        ConfigError: The config cannot be read again, or contradicts a pipeline.
        StatisticsError: The statistics are of another width than the config says.
    """
    if state_dict is not None:
        check_tensors(state_dict)
    tensors = policy.state_dict() if state_dict is None else state_dict
    ignored = set(policy._keys_to_ignore_on_save or ())
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    if not getattr(policy, "_hf_peft_config_loaded", False):  # of those, transformers saves the adapter alone
        again = _opened_again(policy)
        _check_names(tensors, again, "The policy" if state_dict is None else "state_dict")
        check_pipelines(again, policy.pipelines, "The policy to be saved")
    if state_dict is None and not {"cpu", "disk"} & set(getattr(policy, "hf_device_map", {}).values()):
        check_tensors(tensors)  # with such a map, transformers fetches the values while writing
    pieces = {name: Piece(name, TensorInfo(tuple(one.shape), one.dtype)) for name, one in tensors.items()}
    check_dtypes(
        "the policy to be saved", pieces, "its checkpoint could not be opened. Convert all of it (policy.to)."
    )
    for name, tensor in tensors.items():
        check_finite(name, tensor)


def check_tensors(state_dict: Any) -> None:
    """Raise `WeightsError` unless names map to tensors that have values."""
    if not isinstance(state_dict, Mapping):
        raise WeightsError(
            "state_dict maps names to tensors, as policy.state_dict() does, got a "
            f"{type(state_dict).__name__}."
        )
    for name, tensor in state_dict.items():
        if not isinstance(tensor, torch.Tensor):
            raise WeightsError(
                f"'{name}' in state_dict is a {type(tensor).__name__}, not a torch.Tensor: "
                "torch.from_numpy makes one of a numpy array."
            )
        if tensor.is_meta:
            raise WeightsError(
                f"'{name}' lies on the device 'meta', which holds no values, so it cannot be saved: load the "
                "weights first, or give state_dict with tensors that have values."
            )


def check_same_names(
    wanted: Iterable[tuple[frozenset[str], tuple[int, ...]]],
    given: Mapping[str, torch.Tensor],
    who: str,
) -> None:
    """Raise unless tensors are exactly those that a file is to hold.

    Args:
        wanted: The names of each tensor, several where it is shared, of which one is enough; and its shape.
        given: The tensors.
        who: What holds them, for the message.

    Raises:
        WeightsError: Says what is missing, superfluous or of another shape.
    """
    wanted = list(wanted)
    known = {name: shape for names, shape in wanted for name in names}
    missing = [min(names) for names, _ in wanted if not names & given.keys()]
    wrong = [f"missing: {len(missing)} ({_some(missing)})"] if missing else []
    if surplus := sorted(given.keys() - known.keys()):
        wrong.append(f"not the policy's: {len(surplus)} ({_some(surplus)})")
    for name in given.keys() & known.keys():
        if tuple(given[name].shape) != known[name]:
            wrong.append(f"'{name}' is {list(given[name].shape)}, not {list(known[name])}")
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise WeightsError(
            f"{who} does not hold the tensors that the config describes, so what is saved could not be "
            f"opened: {shown}. Nothing was changed."
        )


def _opened_again(policy: PolicyModule) -> PolicyModule:
    """Return the policy that the config describes once it is read from its file, without weights."""
    try:
        config = type(policy.config).from_dict(policy.config.to_dict())
        with torch.random.fork_rng(devices=[]):  # training draws the same with and without a save
            return empty_policy(type(policy), config)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise ConfigError(
            f"The policy's config cannot be read again, so it is not saved: {said}. Set the field to what it "
            "was when the policy was made."
        ) from error


def _check_names(given: Mapping[str, torch.Tensor], again: PolicyModule, who: str) -> None:
    shared: dict[int, set[str]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    for name, parameter in again.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), set()).add(name)
        shapes[id(parameter)] = tuple(parameter.shape)
    check_same_names([(frozenset(names), shapes[key]) for key, names in shared.items()], given, who)


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


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
