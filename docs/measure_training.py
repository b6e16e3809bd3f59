"""What training a policy takes on the GPU at hand: peak memory and seconds per step, way by way.

    python docs/measure_training.py [--policy pi0] [--ways "lora;full"] [--batch 1,8] [--work FOLDER]

Every way is the real training loop in a process of its own, on random weights and random images at full
size, in bfloat16 over float32 weights. The peak is what PyTorch's allocator has held at most in the steps
after the first, which makes AdamW's state; `vla info CHECKPOINT --memory` predicts the same number.
"""
# ruff: noqa: T201

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

LORA = {"policy.adapter.preset": "vlm+expert", "policy.adapter.rank": "16"}
WAYS = {
    "lora": LORA,
    "lora, checkpointing": LORA | {"train.activation_checkpointing": "all"},
    "qlora": LORA | {"policy.adapter.quantize": "4bit"},
    "expert": {"policy.freeze": "vlm"},
    "full": {},
    "full, checkpointing": {"train.activation_checkpointing": "all"},
    "full, checkpointing, compiled": {"train.activation_checkpointing": "all", "train.compile": "true"},
}
"""Recipe keys of each way to train."""

WARM_UP, TIMED = 3, 5
TASK = "put the cup on the plate"


def prepare(work: Path, policy: str, preset: str | None) -> None:
    """Write random recordings with the policy's cameras, a tokenizer, and random weights in bfloat16."""
    import numpy as np
    import torch

    from vla.data.writing.writer import LeRobotWriter
    from vla.policies.registry import make_config, make_policy
    from vla.transforms.tokenizer import train_tokenizer

    config, draw = make_config(policy, preset=preset), np.random.default_rng(0)
    cameras = {
        f"observation.images.{slot}": (config.image_size, config.image_size) for slot in config.cameras
    }
    names = [f"joint_{number}" for number in range(7)]
    with LeRobotWriter(work / "data", 10, cameras=cameras, state_names=names, action_names=names) as out:
        for _ in range(2):
            for _ in range(config.action_horizon + 8):
                images = {key: draw.integers(0, 256, (*size, 3), np.uint8) for key, size in cameras.items()}
                numbers = {
                    key: draw.standard_normal(7, np.float32) for key in ("observation.state", "action")
                }
                out.add_frame({**numbers, **images})
            out.save_episode(TASK)
    train_tokenizer([TASK], vocab_size=300).save_pretrained(work / "tokenizer")
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = make_policy(policy, preset=preset)
    made.to(torch.bfloat16).cpu().save_pretrained(work / "base")


def measure(work: Path, policy: str, way: str, batch: int) -> dict[str, object]:
    """Take some steps of one way to train, in this process."""
    import torch

    from vla.train.checkpoint.folder import RunFolder
    from vla.train.loop import Loop
    from vla.train.recipe_file import load_recipe

    keys = {
        "policy.type": policy,
        "policy.pretrained": work / "base",
        "policy.tokenizer": work / "tokenizer",
        "data.path": work / "data",
        "data.augment": "false",
        "data.validation_fraction": "0",
        "data.cache": "samples",
        "data.num_workers": "0",
        "train.batch_size": batch,
        "train.validate_every": "null",
        "train.tensorboard": "false",
        "output": work / "run",
        **WAYS[way],
    }
    recipe = load_recipe(None, [f"{key}={value}" for key, value in keys.items()])
    began = time.perf_counter()
    loop = Loop(recipe, RunFolder(recipe.output), None, None)
    ready = time.perf_counter() - began
    cuda = torch.cuda.is_available()
    losses = []
    for step in range(WARM_UP + TIMED):
        if step == 1 and cuda:
            torch.cuda.reset_peak_memory_stats()
        if step == WARM_UP:
            loop.flop_rate.take()
            began = time.perf_counter()
        losses.append(loop._take_step()["loss"])  # which waits for the device
    seconds = (time.perf_counter() - began) / TIMED
    rates = loop.flop_rate.take()
    return {
        "way": way,
        "batch": batch,
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None,
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2) if cuda else None,
        "seconds_per_step": round(seconds, 3),
        "samples_per_second": round(batch / seconds, 2),
        "trained": sum(one.numel() for one in loop.job.policy.parameters() if one.requires_grad),
        "ready_after_s": round(ready, 1),
        "losses": [round(losses[0], 4), round(losses[-1], 4)],
        "rates": rates,
    }


def main() -> None:
    """Measure every way in a process of its own, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--policy", default="pi0")
    parser.add_argument("--preset", help="a smaller size, to try this file")
    parser.add_argument("--ways", default=";".join(WAYS), help="separated by ';'")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--work", type=Path, default=Path("measure_training"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.work, options.policy, options.one, int(options.batch))))
        return
    if not (options.work / "base").exists():
        prepare(options.work, options.policy, options.preset)
    for way in options.ways.split(";"):
        for batch in options.batch.split(","):
            command = [sys.executable, __file__, "--policy", options.policy, "--work", str(options.work)]
            ran = subprocess.run([*command, "--one", way, "--batch", batch], capture_output=True, text=True)
            lines = ran.stdout.splitlines()
            if ran.returncode == 0 and lines:
                print(lines[-1], flush=True)
            else:
                said = (ran.stderr.splitlines() or ["nothing said"])[-1]
                print(json.dumps({"way": way, "batch": int(batch), "failed": said}), flush=True)


if __name__ == "__main__":
    main()
