"""A policy's modules without memory for weights: to be filled by a stream, received, or only counted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from vla.checkpoints.module import PolicyModule

AnyPolicy = TypeVar("AnyPolicy", bound=PolicyModule)


def empty_policy(policy_class: type[AnyPolicy], config: Any) -> AnyPolicy:
    """Return a policy whose parameters lie on the meta device; buffers are real, as no file holds them.

    Only modules that the calling thread makes meanwhile are concerned: other threads may load other policies,
    or make modules of their own.
    """
    with _parameters_on_meta():
        return policy_class(config)


class _Building(threading.local):
    """Whether the current thread makes a module without memory."""

    active = False


_building = _Building()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    before, _building.active = _building.active, True
    try:
        yield
    finally:
        _building.active = before


def _without_memory(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
    """Move a parameter to the meta device as a module registers it; None leaves it as it is."""
    if not _building.active:
        return None
    empty: Any = type(parameter)(parameter.to("meta"), requires_grad=parameter.requires_grad)
    empty.__dict__.update(parameter.__dict__)
    return empty


# accelerate's init_empty_weights replaces nn.Module.register_parameter for as long as it is active, in all
# threads, and two at once never put the original back. This hook stays, and each thread decides for itself.
register_module_parameter_registration_hook(_without_memory)  # type: ignore[arg-type]


def parameter_shapes(policy: PolicyModule) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every parameter."""
    return {name: tuple(parameter.shape) for name, parameter in policy.named_parameters()}


def reserve_memory(module: nn.Module, dtype: torch.dtype) -> None:
    """Give every parameter of an empty module memory on the CPU, without values.

    For a process that will receive the values from another one: untouched memory costs nothing.
    """
    made: dict[int, nn.Parameter] = {}
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if id(parameter) not in made:
            reserved = torch.empty(parameter.shape, dtype=dtype)
            made[id(parameter)] = nn.Parameter(reserved, requires_grad=parameter.requires_grad)
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, made[id(parameter)])
