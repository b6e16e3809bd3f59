"""DeepSpeed's share of AdamW's state, as one process would write it to a checkpoint, and back again.

ZeRO keeps the moments of many parameters in one flat tensor, of which every process has a part. DeepSpeed
knows which part of it belongs to which parameter; here the parts become `torch.optim.AdamW.state_dict()`, one
parameter after the other, so that no process holds more than one of them whole next to what it keeps.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroState:
    """AdamW's state under ZeRO, whichever stage.

    Args:
        optimizer: The optimiser, before DeepSpeed wraps it: it knows the number of each parameter.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._parameters: list[Any] = [one for group in optimizer.param_groups for one in group["params"]]
        self._groups: list[dict[str, Any]] = optimizer.state_dict()["param_groups"]

    def whole(self, optimizer: Any, keep: bool) -> dict[str, Any]:
        """Return AdamW's state with whole tensors, in the processor's memory; a collective.

        Args:
            optimizer: The optimiser as prepared by accelerate.
            keep: Whether this process wants the tensors; elsewhere they are left out.
        """
        from deepspeed.utils import safe_get_full_optimizer_state  # pyright: ignore[reportMissingImports]

        zero = optimizer.optimizer
        rates = [group["lr"] for group in zero.optimizer.param_groups]
        groups = [{**group, "lr": lr} for group, lr in zip(self._groups, rates, strict=True)]
        state: dict[int, Any] = {}
        if any(zero.optimizer.state.values()):  # else no step was taken yet
            _link(zero)
            step = next(iter(zero.optimizer.state.values()))["step"]
            for number, parameter in enumerate(self._parameters):
                moments: dict[str, Any] = {
                    name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS
                }
                if keep:
                    shape = getattr(parameter, "ds_shape", parameter.shape)
                    moments = {name: moment.cpu().view(shape) for name, moment in moments.items()}
                    state[number] = {"step": step.detach().cpu().clone(), **moments}
        return {"state": state, "param_groups": groups}

    def load(
        self,
        optimizer: Any,
        step: torch.Tensor,
        moment: Callable[[int, str], torch.Tensor | None],
        rank: int,
    ) -> None:
        """Give ZeRO its share of what `whole`, or AdamW in one process, returned.

        Args:
            optimizer: The optimiser as prepared by accelerate.
            step: How many steps were taken, of shape `[]`.
            moment: Returns a parameter's whole moment, by the parameter's number and the moment's name; None
                where AdamW has none yet, as no gradient has come.
            rank: This process.
        """
        zero = optimizer.optimizer
        on_device = any(group.get("fused") or group.get("capturable") for group in self._groups)
        for flat in _flat_weights(zero):
            zeros = {name: torch.zeros_like(flat) for name in MOMENTS}
            count = step.clone().to(flat.device) if on_device else step.clone()
            zero.optimizer.state[flat] = {"step": count, **zeros}
        _link(zero)
        for number, parameter in enumerate(self._parameters):
            for name in MOMENTS:
                whole = moment(number, name)
                if whole is not None:
                    _set(parameter, name, whole.flatten(), rank)


def _flat_weights(zero: Any) -> list[torch.Tensor]:
    """Return what torch's AdamW steps: this process's part of every group."""
    if hasattr(zero, "single_partition_of_fp32_groups"):
        return zero.single_partition_of_fp32_groups
    return zero.fp32_partitioned_groups_flat


def _link(zero: Any) -> None:
    """Let DeepSpeed find every parameter's part of the flat moments.

    Stages 1 and 2 look for them once, after the first group's first step, when the other groups have none.
    """
    if not hasattr(zero, "bit16_groups"):
        return
    from deepspeed.utils import lazy_init_hp_params_optimizer_state  # pyright: ignore[reportMissingImports]

    for members, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        lazy_init_hp_params_optimizer_state(members, flat, zero.optimizer.state)


def _set(parameter: nn.Parameter, name: str, whole: torch.Tensor, rank: int) -> None:
    from deepspeed.utils import (  # pyright: ignore[reportMissingImports]
        safe_set_full_optimizer_state,
        safe_set_local_optimizer_state,
    )

    part: Any = getattr(parameter, "ds_tensor", None)
    if part is None:
        safe_set_full_optimizer_state(parameter, whole.to(parameter.device), name)
        return
    # Stage 3 cuts every parameter into equal parts, the last one padded.
    mine = whole[rank * part.numel() : (rank + 1) * part.numel()]
    padded = torch.zeros(part.numel(), dtype=whole.dtype, device=part.device)
    padded[: len(mine)] = mine
    safe_set_local_optimizer_state(parameter, padded, name)
