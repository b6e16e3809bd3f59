"""Runs that are killed, each in a process forked from one that has imported everything.

    python -m tests.train.killed_runs CASES.json

A case says which recipe to run, and where the process is to be killed: `"step"` before the optimiser's step
number `at`, `"save"` half-way through checkpoint number `at`, or `"group"`: SIGTERM to the whole process
group, loader workers included, as step `at` begins. Prints each case's exit status, negative for a signal.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from vla.train import load_recipe, loop
from vla.train.checkpoint import on_disk as checkpoint


def kill_before_step(at):
    count = 0

    def hook(*_):
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(hook)


def terminate_group(at):
    count, begin = 0, loop.set_learning_rate

    def begin_or_terminate(optimizer, rate):
        nonlocal count
        count += 1
        if count == at:
            # From a process of its own: loader workers heed their parent's SIGTERM differently.
            sender = os.fork()
            if sender == 0:
                os.kill(0, signal.SIGTERM)
                os._exit(0)
            os.waitpid(sender, 0)
        begin(optimizer, rate)

    loop.set_learning_rate = begin_or_terminate


def kill_while_saving(at):
    count, save = 0, torch.save

    def save_or_die(state, file):
        nonlocal count
        count += 1
        if count == at:
            file.write(b"half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, file)

    checkpoint.torch.save = save_or_die


KILL = {"step": kill_before_step, "save": kill_while_saving, "group": terminate_group}


def run(case):
    os.setpgid(0, 0)
    os.environ.update(case.get("environment", {}))
    if case["where"] is not None:
        KILL[case["where"]](case["at"])
    result = loop.train(load_recipe(None, case["recipe"]), resume=case.get("resume", False), progress=False)
    return 7 if result.stopped_by_signal else 0


def start(case):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = run(case)
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def main(cases):
    for group in cases:  # cases of one group are processes of one run
        children = [start(case) for case in group]
        for child in children:
            sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(json.loads(Path(sys.argv[1]).read_text()))
