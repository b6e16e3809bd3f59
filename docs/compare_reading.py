"""How fast vla and LeRobot's own package read the same files: samples per second of each, and the ratio.

    python docs/compare_reading.py DATASET --lerobot-python OTHER_VENV/bin/python

The two cannot share an environment (their versions of torch and PyAV exclude each other), so this file runs
itself under either interpreter, in turn (A B A B), so that what disturbs one disturbs the other. A sample is
every camera of a random frame and an action chunk; batches, workers and the number of samples are the same,
and the first batches are not counted. (LeRobot's images come out as float32, vla's as uint8, each as its
training takes them.)
"""
# ruff: noqa: T201

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time


def vla_batches(options):
    """Yield batches of vla's loader."""
    from vla.data import LeRobotDataset, ResumableLoader

    dataset = LeRobotDataset(options.dataset, action_horizon=options.horizon)

    def tensors(item, generator):
        return {key: value for key, value in item.items() if hasattr(value, "shape")}

    for batch, _ in ResumableLoader(dataset, tensors, options.batch_size, 0, num_workers=options.workers):
        yield batch


def lerobot_batches(options):
    """Yield batches of LeRobot's dataset in torch's loader, as its training script makes them."""
    import torch

    if options.without_torchvision_ops:
        # A torchvision built for CUDA cannot be imported on torch for CPUs without these two names.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata

    fps = LeRobotDatasetMetadata("local/dataset", root=options.dataset).fps
    steps = {"action": [step / fps for step in range(options.horizon)]}
    dataset = LeRobotDataset("local/dataset", root=options.dataset, delta_timestamps=steps)
    # One endless epoch: a small dataset's would end, and start the workers anew, every few batches.
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**7)
    yield from torch.utils.data.DataLoader(
        dataset, options.batch_size, sampler=sampler, num_workers=options.workers
    )


def samples_per_second(batches, options):
    """Time the batches after the first ones, which pay for starting the workers."""
    batches = iter(batches)
    for _ in range(options.skip):
        next(batches)
    start = time.perf_counter()
    for _ in itertools.islice(batches, options.batches):
        pass
    return options.batches * options.batch_size / (time.perf_counter() - start)


def main():
    """Run one side where `--reader` says which, else both in turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", help="a LeRobot v3.0 dataset's folder")
    parser.add_argument("--lerobot-python", help="interpreter of the environment that has lerobot")
    parser.add_argument("--without-torchvision-ops", action="store_true", help="CPU torch, CUDA torchvision")
    parser.add_argument("--reader", choices=["vla", "lerobot"], help=argparse.SUPPRESS)
    for name, default in (("workers", 2), ("batch-size", 32), ("batches", 40), ("skip", 4), ("horizon", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.reader is not None:
        batches = vla_batches if options.reader == "vla" else lerobot_batches
        print(samples_per_second(batches(options), options))
        return
    speeds = {"vla": [], "lerobot": []}
    for _ in range(options.rounds):
        for reader, python in (("vla", sys.executable), ("lerobot", options.lerobot_python)):
            command = [python, *sys.argv, "--reader", reader]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
            if done.returncode:
                sys.exit(done.stderr)
            speeds[reader].append(float(done.stdout.split()[-1]))
            print(f"{reader}: {speeds[reader][-1]:.0f} samples/s", flush=True)
    ours, theirs = (statistics.median(speeds[reader]) for reader in ("vla", "lerobot"))
    print(f"median: vla {ours:.0f}, lerobot {theirs:.0f} samples/s; ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
