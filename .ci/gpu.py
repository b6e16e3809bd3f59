"""What only a GPU can say: parity of every level, times, training, memory; `make gpu`.

Parts run in order of value, each in a process of its own with a time limit, and write OUT/PART.json as they
end; a part whose file is there is left out. Nothing outside the checkout is read: weights are random.

    make gpu                                    all parts on one CUDA card
    make gpu PARTS="parity sample"              these
    make gpu ARGS="--device cpu --size tiny"    the script itself, tried without a card
"""

import argparse
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vla.bench.machine import describe_machine, peak_memory, versions
from vla.bench.options import BenchOptions
from vla.bench.run import run_bench
from vla.bench.subject import make_noise, make_observation, make_subject, make_training_batch
from vla.bench.training import training_step
from vla.fast.levels import LEVELS, FormError
from vla.fast.triton.tiles import CHOSEN
from vla.policies.base import Policy
from vla.train.monitor.flop_rate import peak_tflops
from vla.train.monitor.operations import TrainingOperations
from vla.train.recipe import TrainSection

Result = dict[str, Any]
PARITY = {"float32": 1e-4, "bfloat16": 1e-2}
"""Largest difference of a chunk from the plain path's."""


def options(arguments: argparse.Namespace, **changes: Any) -> BenchOptions:
    """Return what to measure: pi-0 in bfloat16, three cameras, 48 tokens."""
    preset = {"full": None}.get(arguments.size, arguments.size)
    chosen = BenchOptions(preset=preset, dtype="bfloat16", device=arguments.device, train=False)
    return replace(chosen, **changes)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def levels_of(arguments: argparse.Namespace, policy: Policy) -> list[str]:
    """Return the levels above plain; without a card, those that this machine has."""
    if arguments.device != "cpu":
        return list(LEVELS[1:])
    found = []
    for level in LEVELS[1:]:
        try:
            policy.fast(level)
            found.append(level)
        except FormError as error:
            say(f"{level}: {error}")
    return found


# -- parts --------------------------------------------------------------------------------------------------


def parity(arguments: argparse.Namespace) -> Iterator[Result]:
    """Every level against the plain path, both policies, float32 and bfloat16; graphs must be replayed."""
    for name in ("pi0", "pi05"):
        for dtype, bound in PARITY.items():
            chosen = options(arguments, policy=name, preset="middle", dtype=dtype, batch=2)
            policy = make_subject(replace(chosen, preset="tiny" if arguments.size == "tiny" else "middle"))
            noise = make_noise(chosen, policy)
            for cameras in (3, 1):
                seen = make_observation(chosen, policy, cameras=cameras)
                want = policy.sample_actions(**seen, noise=noise)
                for level in levels_of(arguments, policy):
                    sampler = policy.fast(level)
                    # Programs that share a tile would show a race as chunks that are not alike.
                    rounds = 50 if level == "triton" and arguments.device != "cpu" else 2
                    made = [sampler.sample_actions(**seen, noise=noise) for _ in range(rounds)]
                    found = max((one.float() - want.float()).abs().max().item() for one in made)
                    replayed, alike = sampler.counts.replayed, all(torch.equal(made[0], one) for one in made)
                    yield {
                        "policy": name,
                        "dtype": dtype,
                        "cameras": cameras,
                        "level": sampler.level,
                        "difference": found,
                        "replayed": replayed,
                        "alike": alike,
                        "passed": found <= bound and alike and (replayed > 0 or arguments.device == "cpu"),
                    }


def endurance(arguments: argparse.Namespace) -> Iterator[Result]:
    """Memory over many samples of changing prompt lengths, and samples from four threads."""
    policy = make_subject(
        replace(options(arguments), preset="tiny" if arguments.size == "tiny" else "middle")
    )
    sampler, noise = policy.fast("graph", max_shapes=8), make_noise(options(arguments), policy)
    lengths = range(4, min(40, policy.config.max_prompt_length))
    seen = [policy.example_batch(1, text_tokens=length) for length in lengths]
    held = []
    for number in range(1000 if arguments.size != "tiny" else 60):
        sampler.sample_actions(**seen[number % len(seen)], noise=noise)
        held.append(torch.cuda.memory_allocated() if arguments.device != "cpu" else 0)
    middle = len(held) // 2
    yield {"samples": len(held), "bytes_half_way": held[middle], "bytes_at_end": held[-1]}
    want, wrong = [policy.sample_actions(**one, noise=noise) for one in seen[:4]], []

    def ask(number: int) -> None:
        for _ in range(20):
            made = sampler.sample_actions(**seen[number], noise=noise)
            if (made - want[number]).abs().max() > 0.05:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield {"threads": 4, "wrong": len(wrong), "passed": not wrong and held[-1] <= 1.05 * held[middle] + 1}


def percentiles(work: Callable[[], Any], device: str, rounds: int = 50) -> dict[str, float]:
    """Return p50 and p95 of one call, from end to end, in ms."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - start))
    found = torch.tensor(taken).quantile(torch.tensor([0.5, 0.95])).tolist()
    return {"p50_ms": round(found[0], 3), "p95_ms": round(found[1], 3), "rounds": rounds}


def timed(arguments: argparse.Namespace, policy: Policy, level: str, **shape: Any) -> Result:
    """Return the time of a sample at a level."""
    chosen = options(arguments, **{name: shape[name] for name in ("batch", "prompt_tokens") if name in shape})
    seen = make_observation(chosen, policy, cameras=shape.get("cameras"))
    samples = shape.get("samples", 1)
    noise = make_noise(chosen, policy).repeat_interleave(samples, dim=0)
    extra = {"samples": samples} if samples > 1 else {}
    sampler = policy.fast(level)
    start = time.perf_counter()
    sampler.sample_actions(**seen, noise=noise, **extra)
    warm_up = time.perf_counter() - start
    rounds = 50 if arguments.size == "full" else 5
    found = percentiles(
        lambda: sampler.sample_actions(**seen, noise=noise, **extra), arguments.device, rounds
    )
    memory = peak_memory(torch.device(arguments.device)) / 1e9
    return {"level": level, **shape, **found, "warm_up_s": round(warm_up, 2), "peak_gb": round(memory, 2)}


def sample(arguments: argparse.Namespace) -> Iterator[Result]:
    """Plain and as one graph: three cameras, one camera, eight samples of one observation."""
    policy = make_subject(options(arguments))
    for level in LEVELS[:2]:
        yield timed(arguments, policy, level, cameras=3)
        yield timed(arguments, policy, level, cameras=1)
    yield timed(arguments, policy, "graph", cameras=3, samples=8)
    for batch in (2, 4, 8):
        yield timed(arguments, policy, "graph", cameras=3, batch=batch)


def compiled(arguments: argparse.Namespace) -> Iterator[Result]:
    """Compiled, inside the graph."""
    policy = make_subject(options(arguments))
    for shape in ({"cameras": 3}, {"cameras": 1}, {"cameras": 3, "samples": 8}):
        yield timed(arguments, policy, "compiled", **shape)


def triton(arguments: argparse.Namespace) -> Iterator[Result]:
    """The expert by Triton kernels, inside the graph, both policies; and the tiles that were the fastest."""
    wanted = {
        "pi0": ({"cameras": 3}, {"cameras": 1}, {"cameras": 3, "samples": 8}),
        "pi05": ({"cameras": 3},),
    }
    for name, shapes in wanted.items():
        policy = make_subject(options(arguments, policy=name))
        for shape in shapes if "triton" in levels_of(arguments, policy) else ():
            yield {"policy": name, **timed(arguments, policy, "triton", **shape)}
        del policy
    yield {"tiles": {str(key): chosen._asdict() for key, chosen in CHOSEN.items()}}


def shapes(arguments: argparse.Namespace) -> Iterator[Result]:
    """The shapes that others publish: 20 tokens with one to three cameras, and pi-0.5 with 200 tokens."""
    policy = make_subject(options(arguments))
    most = policy.config.max_prompt_length
    for cameras in (1, 2, 3):
        for level in levels_of(arguments, policy):
            yield timed(arguments, policy, level, cameras=cameras, prompt_tokens=min(20, most))
    del policy
    policy = make_subject(options(arguments, policy="pi05"))
    for level in levels_of(arguments, policy):
        tokens = min(200, policy.config.max_prompt_length)
        yield {"policy": "pi05", **timed(arguments, policy, level, cameras=3, prompt_tokens=tokens)}


def training(arguments: argparse.Namespace) -> Iterator[Result]:
    """A training step with and without compiled layers: samples/s, operations, share of the card's peak."""
    name = torch.cuda.get_device_name() if arguments.device != "cpu" else None
    peak = peak_tflops(name, TrainSection(precision="bf16"))
    for batch in (8, 1, 16):
        for compiles in (False, True):
            torch._dynamo.reset()
            chosen = options(arguments, batch=batch)
            policy = make_subject(chosen).train()
            if compiles:
                policy.compile_layers()
            given = make_training_batch(chosen, policy)
            on_host = {name: tensor.cpu() for name, tensor in given.items()}
            needed = TrainingOperations(policy)(on_host, policy)
            given |= policy.host_inputs(on_host)
            step = training_step(policy, lambda policy=policy, given=given: policy(**given).loss)
            for _ in range(3):
                step()
            found = percentiles(step, arguments.device, 10)
            tflops = needed / found["p50_ms"] / 1e9
            result = {"batch": batch, "compiled": compiles, **found, "tflops": round(tflops, 2)}
            result["samples_per_s"] = round(1e3 * batch / found["p50_ms"], 2)
            result["peak_gb"] = round(peak_memory(torch.device(arguments.device)) / 1e9, 2)
            yield result | ({} if peak is None else {"mfu": round(tflops / peak, 4)})
            del policy, step, given
            if arguments.device != "cpu":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()


def bench(arguments: argparse.Namespace) -> Iterator[Result]:
    """`vla bench` against transformers' PI0, same weights."""
    report = run_bench(options(arguments, against="transformers", rounds=10, levels=LEVELS))
    yield {row.part: 1e3 * row.timing.median for row in report.rows}
    yield {ratio.name: ratio.value for ratio in report.ratios}


PARTS: dict[str, tuple[Callable[[argparse.Namespace], Iterator[Result]], int]] = {
    "parity": (parity, 240),
    "sample": (sample, 120),
    "compiled": (compiled, 180),
    "triton": (triton, 240),
    "training": (training, 240),
    "endurance": (endurance, 90),
    "shapes": (shapes, 240),
    "bench": (bench, 120),
}
"""Name -> what it does, and its seconds at most; in order of value."""


def run_part(name: str, arguments: argparse.Namespace) -> None:
    """Run one part in this process; every line of results is in the file before the next is measured."""
    device = torch.device(arguments.device)
    about = {
        "part": name,
        "machine": describe_machine(device),
        "versions": versions(),
        "size": arguments.size,
    }
    if device.type == "cuda":
        about["cuda"] = torch.version.cuda
    path, results = arguments.out / f"{name}.part", []
    with torch.no_grad() if name != "training" else torch.enable_grad():
        for result in PARTS[name][0](arguments):
            results.append(result)
            say(json.dumps(result))
            path.write_text(json.dumps(about | {"results": results}, indent=1) + "\n", encoding="utf-8")
    path.rename(arguments.out / f"{name}.json")


def main() -> int:
    """Run the parts that are not done, and return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu_results"))
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="full", choices=("full", "middle", "tiny"))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.part is not None:
        logging.basicConfig(level=logging.WARNING)
        run_part(arguments.part, arguments)
        return 0
    failed = []
    for name in arguments.parts:
        if (arguments.out / f"{name}.json").is_file():
            say(f"{name}: done before")
            continue
        say(f"{name}: {PARTS[name][0].__doc__}")
        command = [sys.executable, __file__, "--part", name, "--out", str(arguments.out)]
        command += ["--device", arguments.device, "--size", arguments.size]
        try:
            code = subprocess.run(command, timeout=PARTS[name][1], check=False).returncode
        except subprocess.TimeoutExpired:
            code = f"more than {PARTS[name][1]} s"
        if code != 0:
            failed.append(name)
            say(f"{name}: failed ({code}); what it measured is in {name}.part")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
