"""Tensors that several processes hold in parts: gathered on the main process, or written by each process.

A checkpoint's large tensors are the same whichever engine wrote them: whole weights, and AdamW's moments by
the parameter's number as `make_optimizer` orders them. Gathered, they lie in one file that the main process
writes. Sharded, every process writes its own rows of them, at the same time and without sending any. Either
way each process that continues reads no more than it needs (`vla.weights.files.row_shards`).
"""

import errno
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from vla.atomic import SaveError, atomic_folder
from vla.train.checkpoint.zero import ZeroState
from vla.train.engine import Engine
from vla.weights.files.row_shards import write_shapes
from vla.weights.tensors import TensorReader

logger = logging.getLogger(__name__)

Split = tuple[dict[str, Any], dict[str, Tensor]]
"""An optimiser's `state_dict()` without its large tensors, and those by name."""


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


def whole_weights(engine: Engine, model: Any) -> dict[str, Tensor] | None:
    """Return the policy's weights on the main process, where an engine shards them; None where it does not.

    Every process must call it.
    """
    weights: Any = engine.accelerator.get_state_dict(model) if engine.shards_weights else None
    return weights


class OptimizerState:
    """AdamW's state as one process would have it, whichever engine has it in parts.

    Args:
        engine: The engine that distributes the training.
        optimizer: The optimiser, before accelerate prepares it.
    """

    def __init__(self, engine: Engine, optimizer: torch.optim.Optimizer) -> None:
        self._engine = engine
        # DeepSpeed flattens whatever it steps, but only AdamW's state can be told apart again.
        self._lost = engine.is_zero and not isinstance(optimizer, torch.optim.AdamW)
        self._zero = ZeroState(optimizer) if engine.is_zero and not self._lost else None

    def whole(self, optimizer: Any) -> Split:
        """Return all of it, complete on the main process alone; a collective.

        Empty under DeepSpeed with 8-bit AdamW, whose state has a form of its own there.
        """
        main = self._engine.accelerator.is_main_process
        if self._lost:
            return {"state": {}, "lost": True}, {}
        if self._zero is not None:
            return _split(self._zero.whole(optimizer, main))
        return _split(gathered(optimizer.state_dict(), main))

    def parts(self, optimizer: Any) -> Split:
        """Return it with its tensors as this process holds them; not under ZeRO."""
        assert not self._engine.is_zero
        return _split(optimizer.state_dict())

    def load(self, optimizer: Any, rest: dict[str, Any], reader: TensorReader) -> None:
        """Load what `whole` or `parts` returned under any engine; where it is lost, warn and start anew.

        Args:
            optimizer: The optimiser as prepared by accelerate.
            rest: The state without its large tensors.
            reader: Reader of those tensors.
        """
        if self._lost or rest.get("lost"):
            logger.warning(
                "The state of 8-bit AdamW does not pass from or to DeepSpeed (now: %s): the weights, the "
                "step and the place in the data continue, AdamW's averages start anew.",
                self._engine.name,
            )
        elif self._zero is not None:
            rank = self._engine.accelerator.process_index
            step = next(iter(rest["state"].values()))["step"]

            def moment(number: int, name: str) -> Tensor | None:
                key = _key(number, name)
                return reader.read(key) if key in reader.infos else None

            self._zero.load(optimizer, step, moment, rank)
        else:
            parameters = [one for group in optimizer.param_groups for one in group["params"]]
            state = {number: dict(values) for number, values in rest["state"].items()}
            for key in reader.infos:
                if key.startswith(_PREFIX):
                    number, name = key.removeprefix(_PREFIX).split(".", 1)
                    state[int(number)][name] = read_like(reader, key, parameters[int(number)])
            optimizer.load_state_dict({**rest, "state": state})


_PREFIX = "optimizer."


def _key(number: int, name: str) -> str:
    return f"{_PREFIX}{number}.{name}"


def _split(whole: dict[str, Any]) -> Split:
    rest, tensors = {}, {}
    for number, values in whole["state"].items():
        large = {name: one for name, one in values.items() if isinstance(one, Tensor) and one.ndim}
        rest[number] = {name: value for name, value in values.items() if name not in large}
        tensors |= {_key(number, name): value for name, value in large.items()}
    return {**whole, "state": rest}, tensors


def read_like(reader: TensorReader, name: str, like: Tensor) -> Tensor:
    """Return a tensor from a checkpoint, placed as a parameter is: where that is sharded, its rows alone."""
    if not isinstance(like, DTensor) or reader.infos[name].shape != tuple(like.shape):
        return reader.read(name).to(like.device)
    mesh, placements = like.device_mesh, like.placements
    if placements != (Shard(0),):
        # Every process has read the same file: nobody has to send anything.
        return distribute_tensor(reader.read(name).to(like.device), mesh, placements, src_data_rank=None)
    local = torch.empty(like.to_local().shape, dtype=reader.infos[name].dtype)
    if local.numel():
        per_process = -(-like.shape[0] // mesh.size())
        reader.read_rows(name, local, mesh.get_local_rank() * per_process)
    moved = local.to(like.device)
    return DTensor.from_local(moved, mesh, placements, shape=like.shape, stride=like.stride())


def reshard(model: nn.Module) -> None:
    """Let a model's parameters be shards again, which FSDP2 may keep whole after a pass without gradients."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def write_whole(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write whole tensors into a new folder, from one process, as `RowShardsReader` reads them."""
    folder.mkdir()
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "whole.safetensors")
    write_shapes(folder, tensors)


def write_shards(engine: Engine, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a new folder, every process the rows that it holds; a collective.

    Args:
        engine: The engine that distributes the training.
        folder: The folder, the same for all processes.
        tensors: By name; sharded over all processes along axis 0, or the same in all of them.

    Raises:
        SaveError: A process could not write its rows; every process raises it and names that process.
    """
    try:
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        dcp.save(dict(tensors), storage_writer=writer)
    except CheckpointException as failed:  # of any process, told to all of them
        rank, (cause, _) = next(iter(failed.failures.items()))
        full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(cause)
        said = "the disk is full" if full else f"{type(cause).__name__}: {cause}"
        part = f"its part of the checkpoint's {folder.name}/"  # the folder above has a passing name
        raise SaveError(f"Process {rank} could not write {part}: {said}") from cause
    if engine.accelerator.is_main_process:
        write_shapes(folder, tensors)


@contextmanager
def shared_folder(engine: Engine, target: Path, inside: Path) -> Iterator[Path]:
    """Yield, to every process, the one new folder that takes the place of `target` when the block ends well.

    A collective; all processes must see the same file system. See `vla.atomic.atomic_folder`.
    """
    with ExitStack() as stack:
        made: list[str | None] = [None]
        failed = SaveError(f"{target} could not be made: the main process says why")
        if engine.accelerator.is_main_process:
            try:
                made = [str(stack.enter_context(atomic_folder(target, inside)))]
            except SaveError as error:
                failed = error
        broadcast_object_list(made)
        if made[0] is None:
            raise failed
        yield Path(made[0])
