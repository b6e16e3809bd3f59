"""Two processes that average metrics which only one of them may have; run by test_means.py as a program.

    python -m tests.train.monitor.means_of_processes PORT

Prints the means of four steps as one JSON list, after both processes have agreed on them.
"""

import json
import os
import sys

import torch
import torch.multiprocessing as mp

from vla.train.engine import make_engine
from vla.train.monitor.means import ProcessMeans
from vla.train.recipe import TrainSection

STEPS = (
    ({"loss": 1.0}, {"loss": 2.0}),
    ({"loss": 1.0}, {"loss": 2.0, "text_loss": 4.0}),  # the second has a name that the first has never met
    ({"loss": 2.0, "accuracy": 0.25, "text_loss": 2.0}, {"text_loss": 4.0, "loss": 3.0}),
    ({"loss": 1.0}, {"loss": 2.0}),
)


def run(rank, port, results):
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank)
    )
    engine = make_engine(TrainSection(precision="no", threads=1))
    means = ProcessMeans(engine.accelerator)
    found = [means({name: torch.tensor(value) for name, value in step[rank].items()}) for step in STEPS]
    results.put(found)
    engine.accelerator.wait_for_everyone()
    engine.accelerator.end_training()


if __name__ == "__main__":
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    workers = mp.spawn(run, (sys.argv[1], results), nprocs=2, join=False)
    first, second = results.get(), results.get()
    while not workers.join():
        pass
    assert first == second
    sys.stdout.write(json.dumps(first) + "\n")
