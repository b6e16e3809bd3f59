"""Runs under every engine, each process forked from one that has imported everything.

    python -m tests.train.engine_runs CASES.json

A case names its engine, the processes' recipe, and what goes wrong on the way: `dies`, `fails` or `full`,
each with a process and a step; or that the run `starts` only, and its memory is measured. Every process
writes what it saw to `<name>-<rank>.json` next to CASES.json; the exit statuses and the seconds that it took,
by case, end up in `statuses.json` there. `Runs` makes cases.
"""

import errno
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save as safetensors_bytes
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.tensor import DTensor
from transformers.utils import logging as transformers_logging

from tests.processes import free_port
from tests.train.conftest import tiny_overrides
from vla.errors import DatasetError, VlaError
from vla.train import load_recipe
from vla.train import loop as loop_module
from vla.train.checkpoint import shards
from vla.train.checkpoint.folder import RunFolder
from vla.train.loop import Loop, train
from vla.weights.files.open import open_tensors

# eps: where a gradient is zero but for rounding (biases of keys), AdamW would take whole steps of noise.
COMMON = ["train.batch_size=2", "train.total_batch_size=4", "train.steps=20", "train.eps=1e-6"]
COMMON += ["train.decay_steps=20", "train.validate_every=null", "train.save_every=5", "train.log_every=5"]


class Runs:
    """Runs engines, one after the other, in processes forked from one, and keeps what they report."""

    def __init__(self, dataset, folder):
        self.dataset, self.folder = dataset, folder
        self.statuses, self.seconds = {}, {}

    def case(self, name, engine, *extra, run=None, **options):
        processes = 1 if engine == "single" else 2
        recipe = [*tiny_overrides(self.dataset, self.folder / (run or name)), *COMMON, *extra]
        recipe.append(f"train.accumulation={2 // processes}")
        return {"name": name, "engine": engine, "processes": processes, "recipe": recipe, **options}

    def __call__(self, *cases):
        file = self.folder / "cases.json"
        file.write_text(json.dumps(cases))
        command = [sys.executable, "-m", "tests.train.engine_runs", str(file)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1000)
        self.stderr = ran.stderr
        for name, (statuses, seconds) in json.loads((self.folder / "statuses.json").read_text()).items():
            self.statuses[name], self.seconds[name] = statuses, seconds

    def report(self, name, rank=0):
        return json.loads((self.folder / f"{name}-{rank}.json").read_text())

    def last(self, run):
        return self.folder / run / "checkpoints" / "last"

    def weights(self, run):
        with open_tensors(self.last(run)) as reader:
            return {name: reader.read(name) for name in reader.infos}


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


def memory(key):
    """Return this process's resident memory in bytes: `VmRSS`, or its peak `VmHWM`."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024


def measured_start(recipe):
    """Return by how much this process has grown once the policy is there, and at most until it can train."""
    before, set_up = memory("VmRSS"), loop_module.set_up
    report = {}

    def measured(*args):
        job = set_up(*args)
        report["set up"] = memory("VmRSS") - before
        return job

    loop_module.set_up = measured
    Loop(recipe, RunFolder(recipe.output), None, None)
    return report | {"peak": memory("VmHWM") - before}


class FullDisk(io.FileIO):
    """A file that the system refuses to write half-way."""

    def write(self, content):
        super().write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_disk():
    """Refuse the next large file of this process, of a sharded checkpoint or of a gathered one."""

    @contextmanager
    def create_stream(self, path, mode):
        with FullDisk(path, mode) as file:
            yield file

    def save_file(tensors, path):
        with FullDisk(path, "wb") as file:
            file.write(safetensors_bytes(tensors))

    FileSystem.create_stream, shards.save_file = create_stream, save_file


def run(case):
    transformers_logging.disable_progress_bar()
    launched_as(case["engine"])
    report = {"losses": []}
    file = Path(f"{case['folder']}/{case['name']}-{os.environ.get('RANK', 0)}.json")
    record = Loop._take_step

    def recorded(loop):
        now = [loop.rank, loop.step]
        if case.get("dies") == now:
            os.kill(os.getpid(), signal.SIGKILL)
        if case.get("fails") == now:
            raise DatasetError("a frame\nis damaged")
        if case.get("full") == now:
            fill_disk()
        values = record(loop)
        report["losses"].append([loop.step, values["loss"], values["action_loss"], values.get("text_loss")])
        report["engine"], report["world"] = loop.engine.name, loop.accelerator.num_processes
        report["parameters"], report["optimizer"] = bytes_held(loop)
        return values

    Loop._take_step = recorded
    recipe = load_recipe(None, case["recipe"])
    if case.get("starts"):
        file.write_text(json.dumps(measured_start(recipe)))
        return 0
    try:
        train(recipe, resume=case.get("resume", False), progress=False)
    except VlaError as error:
        report["error"] = f"{type(error).__name__}: {error}"
        report["left"] = sorted(os.listdir(f"{recipe.output}/checkpoints"))
        report["last"] = os.readlink(f"{recipe.output}/checkpoints/last")
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


def preload():
    """Import once what every process would import for itself: half of a short run."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    names = ["pandas", "peft", "sentencepiece.sentencepiece_model_pb2", "torch._inductor.compile_fx"]
    names.append("vla.policies.pi0")
    if importlib.util.find_spec("deepspeed") is not None:
        names.append("deepspeed")
    for name in names:
        importlib.import_module(name)


def main(file):
    preload()
    ended = {}
    for case in json.loads(file.read_text()):
        case["folder"] = str(file.parent)
        world = case["processes"]
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        environments = [{**shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world)]
        began = time.monotonic()
        children = [start(case, e) for e in (environments if world > 1 else [{}])]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        ended[case["name"]] = statuses, time.monotonic() - began
    (file.parent / "statuses.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
