"""Two processes that train a small model under ZeRO; run by test_zero.py as a program.

    python -m tests.train.checkpoint.zero_state PORT

Prints one JSON object: by stage, how far AdamW's gathered state is from that of torch's in one process, and
how far what was set and gathered again, next to the smallest of the tensors' largest moments.
"""

import json
import os
import sys
from functools import partial

import torch
from torch import nn

from vla.train.checkpoint.zero import MOMENTS, ZeroState
from vla.train.engine import make_engine
from vla.train.recipe import TrainSection

STEPS, RATE = 3, 0.05


def make_model():
    """Odd sizes, so that no part ends where a tensor does; a frozen tensor and two groups of weight decay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
    model[2].weight.requires_grad = False
    return model


def make_adamw(model):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in trained if one.ndim > 1], "weight_decay": 0.1},
        {"params": [one for one in trained if one.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=RATE)


def losses(model, step):
    """Of each process's half of the batch."""
    x = torch.linspace(-1, 1, 24).reshape(8, 3) * (step + 1)
    return [model(half).square().mean() for half in x.chunk(2)]


def one_process(steps):
    model = make_model()
    adamw = make_adamw(model)
    for step in range(steps):
        (sum(losses(model, step)) / 2).backward()
        adamw.step()
        adamw.zero_grad()
    return adamw


def prepared(engine):
    model = make_model()
    adamw = make_adamw(model)
    state = ZeroState(adamw)
    model, optimizer = engine.accelerator.prepare(model, adamw)
    return model, optimizer, state


def take_steps(engine, model, steps, rank):
    for step in steps:
        with engine.accelerator.accumulate(model):
            engine.accelerator.backward(losses(model, step)[rank])


def difference(ours, theirs):
    """The largest one, of moments, counts and options."""
    assert ours["state"].keys() == theirs["state"].keys()
    assert [group["weight_decay"] for group in ours["param_groups"]] == [0.1, 0.0]
    assert [g["params"] for g in ours["param_groups"]] == [g["params"] for g in theirs["param_groups"]]
    keys = [(number, key) for number in theirs["state"] for key in (*MOMENTS, "step")]
    pairs = [(ours["state"][number][key], theirs["state"][number][key]) for number, key in keys]
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    return max((a - b).abs().max().item() for a, b in pairs)


def moment_of(state, number, name):
    return state["state"][number][name] if number in state["state"] else None


def without_first(state):
    """As though no gradient had come to the first parameter yet."""
    return state | {"state": {number: one for number, one in state["state"].items() if number}}


def with_zeros_first(state):
    first = state["state"][0]
    zeros = {name: torch.zeros_like(first[name]) for name in MOMENTS}
    return state | {"state": state["state"] | {0: first | zeros}}


def compare(rank, port):
    import deepspeed.ops

    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_DEEPSPEED": "true"}
    report, main = {}, rank == 0
    for stage in (1, 2, 3):
        os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = str(stage)
        engine = make_engine(TrainSection(batch_size=4, precision="no", clip_norm=1e6))
        model, optimizer, state = prepared(engine)
        nothing = state.whole(optimizer, main)["state"]
        take_steps(engine, model, range(STEPS), rank)
        whole = state.whole(optimizer, main)
        # As a resumed run does: into a new optimiser, before its first step.
        _, again, other = prepared(engine)
        theirs = one_process(STEPS).state_dict()
        count = theirs["state"][0]["step"]
        other.load(again, count, partial(moment_of, theirs), rank)
        set_again = other.whole(again, main)
        _, fewer, other = prepared(engine)
        other.load(fewer, count, partial(moment_of, without_first(theirs)), rank)
        fewer_set = other.whole(fewer, main)
        if main:
            report[engine.name] = {
                "before a step": len(nothing),
                "smallest": min(
                    moments[name].abs().max().item()
                    for moments in theirs["state"].values()
                    for name in MOMENTS
                ),
                "gathered": difference(whole, theirs),
                "set": difference(set_again, theirs),
                "fewer set": difference(fewer_set, with_zeros_first(theirs)),
            }
        else:
            assert whole["state"] == set_again["state"] == {}
    if main:
        sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()
    torch.distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    torch.multiprocessing.start_processes(compare, (sys.argv[1],), nprocs=2, start_method="fork")
