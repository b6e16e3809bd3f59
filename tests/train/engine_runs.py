"""Runs under every engine, each process forked from one that has imported everything.

    python -m tests.train.engine_runs CASES.json

A case names its engine, the processes' recipe, and, for what dies on the way, which process is killed at
which step. Every process writes what it saw to `<name>-<rank>.json` beside CASES.json; the exit statuses, by
case, end up in `statuses.json` there.
"""

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers.utils import logging as transformers_logging

from vla.errors import VlaError
from vla.train import load_recipe
from vla.train.loop import Loop, train


def launched_as(engine):
    """Set what `accelerate launch` sets, as far as accelerate reads it."""
    if engine == "fsdp2":
        os.environ |= {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_RESHARD_AFTER_FORWARD": "true",
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
            "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        }
        # accelerate shards on GPUs only; gloo can do it as well.
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    elif engine.startswith("zero"):
        import deepspeed.ops

        # A shared-memory operator would be compiled for a minute; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": engine[-1]}


def bytes_held(loop):
    """Return this process's bytes of parameters and of optimiser state, from the tensors themselves."""

    def size(tensor):
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        tensor = getattr(tensor, "ds_tensor", tensor)
        return tensor.numel() * tensor.element_size()

    optimizer = loop.optimizer.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)  # DeepSpeed's wraps torch's
    # Of DeepSpeed's, the parameters that it updates are float32 copies: counted with neither, since one
    # process without DeepSpeed has none.
    states = [value for state in optimizer.state.values() for value in state.values()]
    parameters = sum(size(parameter) for parameter in loop.job.policy.parameters())
    return parameters, sum(size(value) for value in states if isinstance(value, torch.Tensor))


def run(case):
    transformers_logging.disable_progress_bar()
    launched_as(case["engine"])
    report = {"losses": []}
    file = Path(f"{case['folder']}/{case['name']}-{os.environ.get('RANK', 0)}.json")
    record = Loop._take_step

    def recorded(loop):
        if case.get("dies") == [loop.rank, loop.step]:
            os.kill(os.getpid(), signal.SIGKILL)
        values = record(loop)
        report["losses"].append([loop.step, values["loss"], values["action_loss"], values["text_loss"]])
        report["engine"], report["world"] = loop.engine.name, loop.accelerator.num_processes
        report["parameters"], report["optimizer"] = bytes_held(loop)
        return values

    Loop._take_step = recorded
    try:
        train(load_recipe(None, case["recipe"]), resume=case.get("resume", False), progress=False)
    except VlaError as error:
        report["error"] = f"{type(error).__name__}: {error}"
    file.write_text(json.dumps(report))
    return 3 if "error" in report else 0


def start(case, environment):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.environ.update(environment)
            status = run(case)
        except Exception:  # noqa: BLE001  # the process ends here, whatever it was
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def main(file):
    ended = {}
    for case in json.loads(file.read_text()):
        case["folder"] = str(file.parent)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        world = case["processes"]
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environments = [{**shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world)]
        children = [start(case, e) for e in (environments if world > 1 else [{}])]
        ended[case["name"]] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (file.parent / "statuses.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
