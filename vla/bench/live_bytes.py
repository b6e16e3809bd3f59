"""What a pass holds at once, followed tensor by tensor on a network without values."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vla.bench.on_gpu import OnGpu
from vla.policies.meta_run import MetaRun


@dataclass(frozen=True)
class Held:
    """Bytes of one training step on top of weights and optimiser, and what it trained.

    Attributes:
        between: What is there between forward and backward pass.
        peak: The most there ever is, gradients included.
        trained: The parameters that got a gradient, by name.
    """

    between: int
    peak: float
    trained: dict[str, nn.Parameter]


@dataclass(frozen=True)
class Gathering:
    """What an engine does with the tensors of a step, next to running it.

    Attributes:
        gradient_share: Part of every gradient that stays; 0 where they have their place all the time.
        weights: Layer -> bytes of its weights, which are gathered for its turn.
        layers: Parameter name -> its layer, whose gradients are whole until all of them are made.
    """

    gradient_share: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)


class LiveBytes(MetaRun):
    """A context manager that follows the storages that operators make within it.

    Attributes:
        now: Bytes of those that are alive, without gradients that are finished.
        gradients: Bytes of finished gradients.
        summed: Shapes of gradients that autograd adds up, one into the other; it would otherwise make a third
            tensor of two where operators are followed as they are here.
    """

    def __init__(self, given: Iterable[torch.Tensor], gathering: Gathering) -> None:
        super().__init__()
        self.summed: set[torch.Size] = set()
        self.now = self.gradients = 0
        self.peak = self._lately = 0.0
        self._gathering = gathering
        self._sizes: dict[int, int] = {}
        self._finished: set[int] = set()
        self._whole: dict[str, float] = {}
        self._given = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and note what it made."""
        if func is torch.ops.aten.add.Tensor and self._are_gradients(*args):
            return args[0]
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor):
                self._add(one)
        return out

    def _are_gradients(self, one: Any, other: Any, *rest: Any) -> bool:
        shapes = {getattr(one, "shape", None), getattr(other, "shape", None)}
        return len(shapes) == 1 and shapes <= self.summed

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in self._given:
            return
        self._sizes[key] = size = storage.nbytes()
        self.now += size
        weakref.finalize(storage, self._remove, key)
        self._lately = max(self._lately, self.now + self._gathering.gradient_share * self.gradients)

    def _remove(self, key: int) -> None:
        size = self._sizes.pop(key)
        if key in self._finished:
            self._finished.remove(key)
            self.gradients -= size
        else:
            self.now -= size

    def finish_gradient(self, name: str, gradient: torch.Tensor) -> None:
        """Note that a parameter has its whole gradient."""
        layer = self._gathering.layers.get(name)
        whole = 0.0 if layer is None else self._whole.get(layer, 0.0) + self._gathering.weights[layer]
        key, share = gradient.untyped_storage()._cdata, self._gathering.gradient_share
        if key in self._sizes and key not in self._finished:
            self._finished.add(key)
            self.now -= self._sizes[key]
            self.gradients += self._sizes[key]
        self.close(whole)
        if layer is not None:
            self._whole[layer] = self._whole.get(layer, 0.0) + (1 - share) * gradient.nbytes

    def close(self, gathered: float) -> None:
        """End a stretch of the pass in which so many bytes were gathered."""
        self.peak = max(self.peak, self._lately + gathered)
        self._lately = self.now + self._gathering.gradient_share * self.gradients


def step_bytes(
    policy: nn.Module, inputs: Mapping[str, Any], gpu: OnGpu, gathering: Gathering | None = None
) -> Held:
    """Follow the forward and backward pass of a policy on the meta device.

    Args:
        policy: Its parameters' `requires_grad` say what is trained.
        inputs: Keywords of its `forward`, tensors on the meta device.
        gpu: How the forward pass is computed.
        gathering: What an engine does meanwhile.
    """
    gathering = gathering or Gathering()
    live = LiveBytes(_given(policy, inputs), gathering)
    trained: dict[str, nn.Parameter] = {}
    with torch.enable_grad(), live, _finished_gradients(policy, live.finish_gradient, trained):
        with gpu:
            loss = policy(**inputs).loss
        between = live.now
        live.close(max(gathering.weights.values(), default=0.0))
        live.summed = {one.shape for one in policy.parameters() if one.requires_grad}
        loss.backward()
        live.close(0.0)
    for parameter in policy.parameters():
        parameter.grad = None
    return Held(between, live.peak, trained)


def call_bytes(policy: nn.Module, call: Callable[[], Any], inputs: Mapping[str, Any], gpu: OnGpu) -> int:
    """Return the most bytes that a call without gradients holds on top of the weights."""
    live = LiveBytes(_given(policy, inputs), Gathering())
    with torch.no_grad(), gpu, live:
        call()
    live.close(0.0)
    return int(live.peak)


def _given(policy: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    tensors = [one for one in inputs.values() if isinstance(one, torch.Tensor)]
    return [*policy.parameters(), *policy.buffers(), *tensors]


@contextmanager
def _finished_gradients(
    policy: nn.Module, finish: Callable[[str, torch.Tensor], None], trained: dict[str, nn.Parameter]
) -> Iterator[None]:
    """Call `finish` for every gradient that is whole, and note its parameter."""

    def follow(name: str) -> Callable[[torch.Tensor], None]:
        def done(parameter: torch.Tensor) -> None:
            assert isinstance(parameter, nn.Parameter)
            assert parameter.grad is not None
            trained[name] = parameter
            finish(name, parameter.grad)

        return done

    named = [(name, one) for name, one in policy.named_parameters() if one.requires_grad]
    hooks = [one.register_post_accumulate_grad_hook(follow(name)) for name, one in named]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
