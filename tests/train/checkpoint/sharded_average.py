"""Two processes that share a model by FSDP2 and average its weights; run by test_ema.py as a program.

Prints one JSON object: the largest differences from the same steps in one process.
"""

import json
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from vla.train.ema import WeightAverage

DECAY, STEPS = 0.7, 4


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def take_steps(model, average, x, steps=STEPS):
    """Full-batch steps, so that every rank's mean gradient is that of one process."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        with average.averaged(), torch.no_grad():
            outputs = model(x)  # leaves the root gathered: what follows must not train on it
    return outputs


def compare(rank, port):
    """Train whole and sharded, and report how far apart the two come out."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    whole = make_model()
    average = WeightAverage(whole, DECAY)
    expected = take_steps(whole, average, x)

    model, mesh = make_model(), init_device_mesh("cpu", (2,))
    fully_shard(model[2], mesh=mesh)
    fully_shard(model, mesh=mesh)
    shards = WeightAverage(model, DECAY)
    outputs = take_steps(model, shards, x)
    found, raw = shards.state_dict(), average.state_dict()
    report = {
        "outputs": (outputs - expected).abs().max().item(),
        "weights": max((found[name] - raw[name]).abs().max().item() for name in raw),
        "held": sum(part.numel() for part in shards._others) / sum(part.numel() for part in average._others),
    }
    # As a resumed run does: the policy folder's weights are in the model, the raw ones in the state.
    with average.averaged():
        stored = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    resumed = make_model()
    resumed.load_state_dict(stored)
    fully_shard(resumed, mesh=mesh)
    again = WeightAverage(resumed, DECAY)
    again.load_state_dict(raw)
    loaded = again.state_dict()
    report["resumed"] = max((loaded[name] - raw[name]).abs().max().item() for name in raw)
    with again.averaged(), torch.no_grad():
        report["resumed_outputs"] = (resumed(x) - expected).abs().max().item()
    if rank == 0:
        sys.stdout.write(json.dumps(report) + "\n")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.start_processes(compare, (int(sys.argv[1]),), nprocs=2, start_method="fork")
