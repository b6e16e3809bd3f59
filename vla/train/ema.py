"""An average of the trained weights over the last steps, which acts better than the weights themselves.

After every optimiser step, `average = decay * average + (1 - decay) * weights`, from the weights that the run
started with. What is averaged is what is trained: of an adapter, the adapter alone. Validation, open-loop
evaluation and the policy folder of a checkpoint have the average (so it is what robots get, as with openpi's
`params`); `training/` next to it has the weights that training continues with.

All of it is element by element on the tensors that this process holds, so that sharding changes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vla.errors import ConfigError, TrainingError
from vla.train.checkpoint.shards import reshard
from vla.train.recipe import TrainSection


def decay_at(step: int, train: TrainSection) -> float:
    """Return the decay at the optimiser step number `step`, counted from 0.

    `ema`, or, with `ema_power`, the smaller of it and `1 - step ** -ema_power`: the average is a copy of the
    weights after the first two steps, and its memory grows with the steps taken.

    Args:
        step: Optimiser steps that were taken before this one.
        train: Has `ema`.
    """
    assert train.ema is not None
    if train.ema_power is None:
        return train.ema
    return 0.0 if step == 0 else min(1 - step**-train.ema_power, train.ema)


class WeightAverage:
    """The exponential moving average of a model's trainable parameters, in float32.

    To be made once the parameters are where they stay: after `accelerator.prepare`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start at the weights as they are.

        Args:
            model: The policy itself, not a wrapper of it, so that the names are the policy's.
            decay: How much of the average stays at a step, in (0, 1).

        Raises:
            ConfigError: A trained parameter is not float32, or is held where it cannot be reached.
        """
        self.decay = decay
        self._model = model
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, parameter in self._parameters.items():
            _check_reachable(name, parameter)
        self._others = [_local(parameter).clone() for parameter in self._parameters.values()]
        self._swapped = False

    @torch.no_grad()
    def update(self, decay: float | None = None) -> None:
        """Move the average towards the weights; to be called after every optimiser step.

        Args:
            decay: How much of the average stays at this step, in [0, 1); its own where not given.
        """
        assert not self._swapped
        if self._others:
            decay = self.decay if decay is None else decay
            torch._foreach_lerp_(self._others, self._locals(), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model have the average inside the block, and exactly the weights again after it."""
        assert not self._swapped
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self, keep: bool = True) -> dict[str, torch.Tensor]:
        """Return the weights without their average, whole and on the CPU; a collective where sharded.

        The average is not in here: a checkpoint's policy folder holds it, see `load_state_dict`.

        Args:
            keep: Whether this process wants them; elsewhere they are made whole and left out.
        """
        wholes = ((name, _whole(parameter)) for name, parameter in self.parts().items())
        return {name: whole for name, whole in wholes if keep}

    def parts(self) -> dict[str, torch.Tensor]:
        """Return the weights without their average as this process holds them, sharing memory."""
        assert not self._swapped
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, weights: dict[str, torch.Tensor]) -> None:
        """Take the model's weights, just read from a policy folder, as the average and `weights` as its own.

        Raises:
            TrainingError: They are not the parameters that are trained now.
        """
        differing = sorted(weights.keys() ^ self._parameters.keys())
        if differing:
            raise TrainingError(
                f"The checkpoint's averaged weights are not those that are trained now: {len(differing)} "
                f"differ, '{differing[0]}' first. Resume with the run's own recipe."
            )
        for (name, parameter), other in zip(self._parameters.items(), self._others, strict=True):
            other.copy_(_local(parameter))
            _local(parameter).copy_(_local(_placed_like(weights[name], parameter)))

    def _locals(self) -> list[torch.Tensor]:
        return [_local(parameter) for parameter in self._parameters.values()]

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the contents of the parameters and of the average, a tensor at a time."""
        reshard(self._model)  # else FSDP2 might keep using gathered copies
        for mine, other in zip(self._locals(), self._others, strict=True):
            kept = mine.clone()
            mine.copy_(other)
            other.copy_(kept)
        self._swapped = not self._swapped


def _check_reachable(name: str, parameter: nn.Parameter) -> None:
    if hasattr(parameter, "ds_id"):
        raise ConfigError(
            "train.ema does not work under DeepSpeed ZeRO-3, which keeps the weights out of reach between "
            "steps. Use FSDP2, which shards as much, or train.ema=null."
        )
    if parameter.dtype != torch.float32:
        raise ConfigError(
            f"train.ema averages float32 weights, but '{name}' is {parameter.dtype}: the engine keeps the "
            "float32 ones to itself. Use FSDP2, DDP or train.precision=no, or train.ema=null."
        )


def _local(tensor: Any) -> torch.Tensor:
    """Return this process's part, sharing memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy on the CPU of all of a tensor, gathered where it is sharded."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.to("cpu", copy=True)


def _placed_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
