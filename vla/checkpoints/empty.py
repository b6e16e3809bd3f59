"""A policy's modules without memory for weights: to be filled by a stream, received, or only counted."""

from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from torch import nn

from vla.checkpoints.module import PolicyModule

AnyPolicy = TypeVar("AnyPolicy", bound=PolicyModule)


def empty_policy(policy_class: type[AnyPolicy], config: Any) -> AnyPolicy:
    """Return a policy whose parameters lie on the meta device; buffers are real, as no file holds them."""
    with init_empty_weights(include_buffers=False):
        return policy_class(config)


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
