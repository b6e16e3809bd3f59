"""A policy's modules without memory for weights: to be filled by a stream, received, or only counted."""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from vla.checkpoints.module import PolicyModule
from vla.errors import ConfigError

AnyPolicy = TypeVar("AnyPolicy", bound=PolicyModule)

_MOST_MODULES = 20_000  # a policy of full size has less than 1000
_NO_MEMORY = ("can't allocate memory", "Storage size calculation overflowed", "numel: integer multiplication")


def empty_policy(policy_class: type[AnyPolicy], config: Any) -> AnyPolicy:
    """Return a policy whose parameters lie on the meta device; buffers are real, as no file holds them.

    Only modules that the calling thread makes meanwhile are concerned: other threads may load other policies,
    or make modules of their own.
    """
    with _parameters_on_meta():
        return policy_class(config)


class _Building(threading.local):
    """Whether the current thread makes a module without memory, and how much a policy that it makes has."""

    active = False
    is_measured = False
    modules = 0
    memory = 0


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
        if _building.is_measured and parameter.device.type == "cpu":
            _building.memory += parameter.numel() * parameter.element_size()
            if _building.memory > (there := machine_memory()):
                raise ConfigError(
                    f"This policy's weights take more than {_building.memory / 1e9:.3g} GB, and the machine "
                    f"has {there / 1e9:.3g} GB of memory: choose smaller sizes in its config."
                )
        return None
    empty: Any = type(parameter)(parameter.to("meta"), requires_grad=parameter.requires_grad)
    empty.__dict__.update(parameter.__dict__)
    return empty


# accelerate's init_empty_weights replaces nn.Module.register_parameter for as long as it is active, in all
# threads, and two at once never put the original back. This hook stays, and each thread decides for itself.
register_module_parameter_registration_hook(_without_memory)  # type: ignore[arg-type]


def _count(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    if _building.is_measured:
        _building.modules += 1
        if _building.modules > _MOST_MODULES:
            raise ConfigError(
                f"This policy has more than {_MOST_MODULES} modules, so that making it would take very long: "
                "choose fewer layers in its config."
            )


register_module_module_registration_hook(_count)


def measured(make: Callable[..., None]) -> Callable[..., None]:
    """Return a policy class's `__init__` that refuses sizes too large for any machine, or for this one.

    They are told of before the memory is touched, and before minutes are spent on making layers.

    Raises:
        ConfigError: The policy has too many modules or too much memory.
    """

    @functools.wraps(make)
    def made(policy: Any, *args: Any, **kwargs: Any) -> None:
        if _building.is_measured:  # a subclass is being made
            make(policy, *args, **kwargs)
            return
        _building.is_measured, _building.modules, _building.memory = True, 0, 0
        try:
            make(policy, *args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            raise ConfigError(
                "A single tensor of this policy is larger than the machine's memory "
                f"({machine_memory() / 1e9:.3g} GB): choose smaller sizes in its config."
            ) from error
        finally:
            _building.is_measured = False

    return made


def machine_memory() -> int:
    """Return how many bytes of memory the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _is_out_of_memory(error: BaseException) -> bool:
    said = str(error)
    return isinstance(error, MemoryError) or any(sign in said for sign in _NO_MEMORY)


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
