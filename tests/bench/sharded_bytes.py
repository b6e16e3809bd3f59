"""Two processes that share a policy by FSDP2, and what one of them really holds; run as a program.

Prints one JSON list, without activation checkpointing and with it, of bytes: `static` between steps, `kept`
on top of that when the forward pass is over, `peak` of forward and backward pass.
"""

import json
import os
import sys
import weakref

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.bench.saved_bytes import StepBytes, loss_of, make, make_batch


class LivingBytes(StepBytes):
    """Looks at what storages hold now: FSDP2 keeps those of gathered weights, and empties them."""

    def __init__(self, batch):
        self._storages = {}
        super().__init__(batch)

    def add(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata in self._given:
            return
        self._storages[storage._cdata] = weakref.ref(storage)
        self.peak = max(self.peak, self.now)

    @property
    def now(self):
        living = {key: storage() for key, storage in self._storages.items()}
        self._storages = {key: self._storages[key] for key, one in living.items() if one is not None}
        return sum(one.nbytes() for one in living.values() if one is not None)

    @now.setter
    def now(self, value):
        assert value == 0


def measure(policy, batch, mesh):
    for module in policy.modules():
        if type(module).__name__ in policy._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(policy.get_input_embeddings(), mesh=mesh)
    fully_shard(policy, mesh=mesh)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    loss_of(policy, batch, autocast=True).backward()
    optimizer.step()
    optimizer.zero_grad()
    with LivingBytes(batch) as count:
        moments = [value for state in optimizer.state.values() for value in state.values()]
        for tensor in (*policy.parameters(), *moments):
            count.add(tensor.to_local() if hasattr(tensor, "to_local") else tensor)
        static = count.now
        loss = loss_of(policy, batch, autocast=True)
        kept = count.now - static
        loss.backward()
    return {"static": static, "kept": kept, "peak": count.peak}


def report(rank, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = []
    for checkpointed in (False, True):
        policy = make("pi0", "middle")
        if checkpointed:
            policy.activation_checkpointing_enable()
        batch = make_batch(policy.config, 1, 1, 12)
        found.append(measure(policy, batch, init_device_mesh("cpu", (2,))))
    if rank == 0:
        sys.stdout.write(json.dumps(found) + "\n")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.multiprocessing.start_processes(report, (int(sys.argv[1]),), nprocs=2, start_method="fork")
