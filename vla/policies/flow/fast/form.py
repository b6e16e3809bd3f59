"""A policy's weights as inference wants them, all three stacks."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch

from vla.errors import ConfigError, did_you_mean
from vla.fast.levels import FormError, check_dtype
from vla.fast.release import ReleasedError, is_released, release, storage_bytes
from vla.fast.stack import Stack
from vla.fast.triton.available import reason_against
from vla.fast.vision import Vision
from vla.fast.watch import check_hooks
from vla.fast.weights import Product, memory_of
from vla.policies.flow.fast.program import Suffix
from vla.types import as_counts, as_flag

USUAL_BACKENDS = ("inductor", "eager", "aot_eager")


class Form:
    """Vision, prefix and suffix of a policy, made of its weights as they are now.

    Args:
        policy: A policy of pi-0's family.
        suffix: The inference form of its expert.
        fold: Whether matrices of one input are joined and gains folded into them.
    """

    def __init__(self, policy: Any, suffix: Callable[[Any, bool], Suffix], fold: bool) -> None:
        model = policy.model
        self._policy = policy
        self.vision = Vision(model.vision_tower, model.multi_modal_projector, fold)
        self.prefix = Stack(model.language_model, fold)
        self.suffix = suffix(model, fold)

    @property
    def products(self) -> list[Product]:
        """All products with weights."""
        return [*self.vision.products(), *self.prefix.products(), *self.suffix.products()]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All weights that it multiplies by."""
        return [*self.vision.tensors(), *self.prefix.tensors(), *self.suffix.tensors()]

    @property
    def extra_bytes(self) -> int:
        """Bytes of weights that are not the policy's own."""
        return memory_of(self.tensors, self._policy)

    @property
    def resident_bytes(self) -> int:
        """Bytes of all weights: the policy's and its own, what they share counted once."""
        return storage_bytes([*self._policy.parameters(), *self.tensors])

    def reason_against_kernels(self, fold: bool) -> str | None:
        """Return why Triton kernels cannot run its expert; None where they can."""
        if not fold:
            return "the kernels take joined matrices: leave fold=False out"
        suffix, of_prefix = self.suffix, self._policy.model.language_model.embed_tokens.weight
        ends = suffix.ends()
        own = (*suffix.stack.tensors(), *(one.weight for one in (*ends.embed, ends.out)))
        return reason_against(self._policy.device, {one.dtype for one in (*own, of_prefix)})

    def release_plain(self) -> int:
        """Let go of the policy's own weights that it holds otherwise; returns their bytes."""
        return release(self._policy, self.products, self.tensors)


def check_form(policy: Any, fold: bool, release_plain: bool) -> None:
    """Raise unless a policy can have a form.

    Raises:
        FormError: Its weights are elsewhere, or the device has no arithmetic for them; or its layers do more
            than multiply by weights (hooks).
        ReleasedError: Its plain weights were released.
        ConfigError: `release_plain` would release nothing, or more than the form holds.
    """
    if is_released(policy):
        raise ReleasedError("making another inference form")
    fold, release_plain = as_flag(fold, "fold"), as_flag(release_plain, "release_plain")
    if any(parameter.is_meta for parameter in policy.parameters()) or hasattr(policy, "_hf_hook"):
        raise FormError("Its weights are elsewhere: offloaded, or spread over devices by accelerate.")
    check_hooks(policy.model)
    check_dtype(policy.dtype, policy.device)
    if release_plain and not fold:
        raise ConfigError("release_plain releases what is held folded, and fold=False folds nothing.")
    if release_plain and policy.config.actions_see_response:
        raise ConfigError(
            "The policy generates text before it acts (actions_see_response), for which it needs its plain "
            "weights: leave out release_plain."
        )


def as_buckets(given: Any, name: str, longest: int) -> tuple[int, ...]:
    """Return sizes that shapes are filled up to.

    Raises:
        ConfigError: They are not whole numbers from 1 to `longest`, each larger than the one before.
    """
    buckets = tuple(as_counts(given, name))
    rises = all(before < after for before, after in pairwise((0, *buckets)))
    if not rises or (buckets and buckets[-1] > longest):
        raise ConfigError(
            f"{name} must be numbers from 1 to {longest}, each above the one before, got {list(buckets)}."
        )
    return buckets


def as_backend(given: Any) -> Any:
    """Return a backend of `torch.compile`: its name, or a function.

    Raises:
        ConfigError: There is no such backend.
    """
    if callable(given) or given in USUAL_BACKENDS:
        return given
    known = torch.compiler.list_backends(exclude_tags=())  # the compiler takes seconds to import
    if given not in known:
        hint = did_you_mean(given, known) if isinstance(given, str) else ""
        raise ConfigError(f"backend must be one of torch.compile's, {', '.join(known)}, got {given!r}.{hint}")
    return given


def check_options(form: Callable[..., Any], given: Mapping[str, Any], own: Iterable[str]) -> None:
    """Raise `ConfigError` for an option that a form does not take; `own` are not the user's to give."""
    known = [
        name
        for name, one in inspect.signature(form).parameters.items()
        if one.kind is one.KEYWORD_ONLY and name not in own
    ]
    for name in given:
        if name not in known:
            raise ConfigError(
                f"The inference form takes no '{name}', only {', '.join(known)}.{did_you_mean(name, known)}"
            )
