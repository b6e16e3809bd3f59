"""A policy's modules without memory for any weight: to be filled by a stream, or only to be counted."""

from typing import Any, TypeVar

from accelerate import init_empty_weights

from vla.policies.base import Policy

AnyPolicy = TypeVar("AnyPolicy", bound=Policy)


def empty_policy(policy_class: type[AnyPolicy], config: Any) -> AnyPolicy:
    """Return a policy whose parameters lie on the meta device; buffers are real, as no file holds them."""
    with init_empty_weights(include_buffers=False):
        return policy_class(config)


def parameter_shapes(policy: Policy) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every parameter."""
    return {name: tuple(parameter.shape) for name, parameter in policy.named_parameters()}
