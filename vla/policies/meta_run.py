"""Networks run without values: on the meta device tensors have a shape and a dtype, and nothing is computed.

What such a run calls, and what it would hold, is what the real one does, as long as no step depends on a
value. It costs what Python and autograd cost: a training step of three billion weights some 0.2 s.
"""

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vla.nn.flop_counter import flop_counter

AnyModule = TypeVar("AnyModule", bound=nn.Module)

_MOST_KNOWN = 20_000
_known: dict[Any, tuple[int, list[Any], type | None]] = {}
"""Operator and what it was given -> its operations, and what it gave; a pass has some hundreds of them."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def without_values(module: AnyModule, shared: Iterable[Any] = ()) -> AnyModule:
    """Return a copy of a module on the meta device, which takes no memory; the module stays as it is.

    It has the parameters' dtypes and what is trained of them, but neither hooks nor compiled layers. Linear
    layers whose weights are stored in a few bits become ordinary frozen ones, which multiply as they do.

    Args:
        module: Not sharded.
        shared: Objects that the copy may use as they are: configs, tokenizers.
    """
    known: dict[int, Any] = {id(one): one for one in shared}
    for child in module.modules():
        packed = _unpacked(child)
        if packed is not None:
            known[id(child)] = packed
        for parameter in child._parameters.values():
            if parameter is not None and id(parameter) not in known:
                empty = torch.empty_like(parameter.detach(), device="meta")
                can_learn = parameter.requires_grad and empty.is_floating_point()
                known[id(parameter)] = nn.Parameter(empty, requires_grad=can_learn)
        for buffer in child._buffers.values():
            if buffer is not None:
                known.setdefault(id(buffer), torch.empty_like(buffer, device="meta"))
    twin = copy.deepcopy(module, known)
    for child in twin.modules():
        for hooks in _HOOKS:
            getattr(child, hooks).clear()
    return twin


def _unpacked(module: nn.Module) -> nn.Linear | None:
    """Return a plain layer in place of one whose weights are not numbers as they lie there."""
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear) or weight is None or weight.is_floating_point():
        return None
    dtype = getattr(module, "compute_dtype", None) or torch.get_default_dtype()
    plain = nn.Linear(
        module.in_features, module.out_features, module.bias is not None, device="meta", dtype=dtype
    )
    return plain.requires_grad_(False)


class MetaRun(TorchDispatchMode):
    """A context manager in which operators on meta tensors run faster, and are counted.

    An operator that has run before on tensors of the same shapes gives new ones of the shapes that it gave
    then, without asking PyTorch again, which takes ten times as long. It can be entered again and again.

    Attributes:
        flops: Floating-point operations so far: products, a multiplication and an addition as two.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self._formulas = flop_counter().flop_registry
        self._makes_new: dict[Any, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, or repeat what it gave."""
        kwargs = kwargs or {}
        makes_new = self._makes_new.get(func)
        if makes_new is None:
            makes_new = self._makes_new[func] = _makes_new_tensors(func)
        if not makes_new:
            out = func(*args, **kwargs)
            self.flops += self._cost(func, args, kwargs, out)
            return out
        key = self._key(func, args, kwargs)
        found = None if key is None else _known.get(key)
        if found is None:
            return self._learn(key, func, args, kwargs)
        flops, described, kind = found
        self.flops += flops
        made = [torch.empty_strided(*size, dtype=dtype, device="meta") for *size, dtype in described]
        return made[0] if kind is None else kind(made)

    def _learn(self, key: Any, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        flops = self._cost(func, args, kwargs, out)
        self.flops += flops
        kind = out.__class__ if isinstance(out, tuple | list) else None
        made: list[Any] = [out] if kind is None else list(out)
        if key is not None and all(type(one) is torch.Tensor and one.is_meta for one in made):
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
            _known[key] = (flops, [(one.shape, one.stride(), one.dtype) for one in made], kind)
        return out

    def _cost(self, func: Any, args: Any, kwargs: Any, out: Any) -> int:
        formula = self._formulas.get(getattr(func, "overloadpacket", func))
        return 0 if formula is None else formula(*args, **kwargs, out_val=out)

    @staticmethod
    def _key(func: Any, args: Any, kwargs: Any) -> Any:
        """Return what decides an operator's result, up to values; None where that cannot be compared."""
        key = (func, _described(args), tuple((name, _described(one)) for name, one in kwargs.items()))
        try:
            hash(key)
        except TypeError:
            return None
        return key


def _makes_new_tensors(func: Any) -> bool:
    """Whether an operator neither changes what it is given, nor returns parts of it."""
    schema = getattr(func, "_schema", None)
    if schema is None or schema.is_mutable:
        return False
    return not any(one.alias_info for one in (*schema.returns, *schema.arguments))


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype, value.is_meta)
    if isinstance(value, tuple | list):
        return tuple(map(_described, value))
    return (value.__class__, value)  # 1, 1.0 and True are equal, and give other dtypes
