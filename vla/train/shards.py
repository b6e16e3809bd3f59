"""What several processes hold in parts, as one process would write it to a checkpoint, and back again.

A checkpoint is the same whichever engine wrote it: whole weights, and AdamW's state in the form of
`torch.optim.AdamW.state_dict()` with the parameters numbered as `make_optimizer` orders them.
"""

import logging
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from vla.train.engine import Engine

logger = logging.getLogger(__name__)


def gathered(value: Any, keep: bool) -> Any:
    """Return nested dictionaries and lists with sharded tensors made whole, in the processor's memory.

    Every process must call it, since they gather one tensor after the other together.

    Args:
        value: What may hold sharded tensors.
        keep: Whether this process wants the result; elsewhere they are None.
    """
    if isinstance(value, DTensor):
        whole = value.full_tensor().detach()
        return whole.cpu() if keep else None
    if isinstance(value, dict):
        return {key: gathered(part, keep) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gathered(part, keep) for part in value)
    return value


def whole_weights(engine: Engine, model: Any) -> dict[str, torch.Tensor] | None:
    """Return the policy's weights on the main process, where an engine shards them; None where it does not.

    Every process must call it.
    """
    weights: Any = engine.accelerator.get_state_dict(model) if engine.shards_weights else None
    return weights


def whole_optimizer_state(engine: Engine, optimizer: Any) -> dict[str, Any] | None:
    """Return the optimiser's state as one process would have it, complete on the main process alone.

    Every process must call it. None under DeepSpeed, which keeps its state in a form of its own.
    """
    if engine.is_zero:
        return None
    return gathered(optimizer.state_dict(), engine.accelerator.is_main_process)


def load_optimizer_state(engine: Engine, optimizer: Any, state: dict[str, Any] | None) -> None:
    """Give an optimiser the state that `whole_optimizer_state` returned under any engine.

    Where one of the two is DeepSpeed, the optimiser starts anew, and the log says so.
    """
    if engine.is_zero or state is None:
        logger.warning(
            "The optimiser's state does not pass from or to DeepSpeed (now: %s): the weights, the step and "
            "the place in the data go on, AdamW's averages start anew.",
            engine.name,
        )
        return
    if engine.name == "fsdp2":
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = _sharded_like(parameters, state)
    optimizer.load_state_dict(state)


def _sharded_like(parameters: list[torch.nn.Parameter], state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimiser's whole state with every tensor sharded as the parameter that it belongs to.

    Args:
        parameters: In the optimiser's order.
        state: `state_dict()` of the optimiser of a process that holds everything.
    """

    def shard(parameter: torch.nn.Parameter, value: Any) -> Any:
        if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor):
            return value
        if value.shape != parameter.shape:  # the count of steps
            return value
        whole = value.to(parameter.device_mesh.device_type)
        # Every process has read the same file: nobody has to send anything.
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)

    sharded = {
        number: {name: shard(parameters[number], value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": sharded}
