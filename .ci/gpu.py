"""What only a GPU can say: parity of every level, times, training, memory; `make gpu`.

Parts run in order of value, each in a process of its own with a time limit, and write OUT/PART.json as they
end; a part whose file is there is left out. Nothing outside the checkout is read: weights are random.

    make gpu                                    all parts on one CUDA card
    make gpu PARTS="parity sample"              these
    make gpu ARGS="--device cpu --size tiny"    the script itself, tried without a card
"""

import argparse
import copy
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vla.adapters.lora import AdapterConfig, add_adapter, cast_frozen
from vla.bench.machine import describe_machine, peak_memory, versions
from vla.bench.memory import ADAMW, ADAPTED, FULL, LORA, MASTER, memory_table
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import measure_training  # noqa: E402 (a script next to the pages that it is for)

Result = dict[str, Any]
SAME_CURVE = 1e-3
"""Largest relative difference of a loss from that of one process, in float32."""
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
                exact = in_float32(policy, seen, noise)
                rounding = (want.float() - exact).abs().max().item()
                for level in levels_of(arguments, policy):
                    sampler = policy.fast(level)
                    # Programs that share a tile would show a race as chunks that are not alike.
                    rounds = 50 if level == "triton" and arguments.device != "cpu" else 2
                    made = [sampler.sample_actions(**seen, noise=noise) for _ in range(rounds)]
                    found = max((one.float() - want.float()).abs().max().item() for one in made)
                    own = max((one.float() - exact).abs().max().item() for one in made)
                    ran = sampler.counts.replayed > 0 or arguments.device == "cpu"
                    replayed, alike = sampler.counts.replayed, all(torch.equal(made[0], one) for one in made)
                    yield {
                        "policy": name,
                        "dtype": dtype,
                        "cameras": cameras,
                        "level": sampler.level,
                        "difference": found,
                        "from_float32": own,
                        "plain_from_float32": rounding,
                        "replayed": replayed,
                        "alike": alike,
                        "passed": found <= bound and alike and ran,
                    }


def in_float32(policy: Policy, seen: dict[str, Any], noise: torch.Tensor) -> torch.Tensor:
    """Return the plain path's chunk in float32 with the same weights: how far bfloat16 itself rounds."""
    exact = copy.deepcopy(policy).float()
    given = {
        name: one.float() if isinstance(one, torch.Tensor) and one.is_floating_point() else one
        for name, one in seen.items()
    }
    return exact.sample_actions(**given, noise=noise.float())


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
    extra |= {name: shape[name] for name in ("num_steps",) if name in shape}
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
        if arguments.device == "cpu":  # in the interpreter, which takes seconds for a step
            shapes = ({"cameras": 1, "num_steps": 1},)
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


def training_point(arguments: argparse.Namespace) -> Iterator[Result]:
    """A training step at batch 8, plain, with layers compiled and with the whole pass compiled."""
    yield from trained(arguments, "full", (8,), ("none", "layers", "stack"))


def training(arguments: argparse.Namespace) -> Iterator[Result]:
    """A training step, plain and with layers and the whole pass compiled, at batch 1, 8 and 16."""
    yield from trained(arguments, "full", (8, 1, 16), ("none", "layers", "stack"))


def lora(arguments: argparse.Namespace) -> Iterator[Result]:
    """The same of an adapter on a frozen base."""
    yield from trained(arguments, "lora", (8, 1), ("none", "stack"))


def trained(
    arguments: argparse.Namespace, way: str, batches: tuple[int, ...], scopes: tuple[str, ...]
) -> Iterator[Result]:
    """Yield samples/s, share of the card's peak, and peak memory next to what is predicted for it.

    As `vla train` does: bfloat16 by autocast over float32 weights, a frozen base in bfloat16, fused AdamW.
    """
    use, device = {"full": FULL, "lora": LORA}[way], torch.device(arguments.device)
    peak = peak_tflops(None if device.type == "cpu" else torch.cuda.get_device_name(), TrainSection())
    for batch in batches if arguments.size == "full" else batches[:2]:
        wanted = {"batch_size": batch, "wanted": lambda one, kind: one == use and kind == MASTER.name}
        for scope in scopes:
            torch._dynamo.reset()
            chosen = options(arguments, batch=batch, dtype="float32")
            policy = make_subject(chosen).train()
            if way == "lora":
                add_adapter(policy, AdapterConfig(preset=ADAPTED, rank=16))
                cast_frozen(policy, torch.bfloat16)
            if scope != "none":  # without kernels where it is only tried
                backend = "aot_eager" if arguments.size == "tiny" else "inductor"
                (policy.compile_stack if scope == "stack" else policy.compile_layers)(backend)
            predicted = memory_table(policy.config, **wanted)
            found = {"way": way, "batch": batch, "compile": scope, **step_times(arguments, chosen, policy)}
            tflops = found.pop("operations") / found["p50_ms"] / 1e9
            found |= {"samples_per_s": round(1e3 * batch / found["p50_ms"], 2), "tflops": round(tflops, 2)}
            found |= {} if peak is None else {"mfu": round(tflops / peak, 4)}
            (row,) = [one for one in predicted if one.optimizer == ADAMW]
            yield found | {"predicted_gb": round(row.total_gb, 2)}
            del policy
            if device.type != "cpu":
                torch.cuda.empty_cache()


def step_times(arguments: argparse.Namespace, chosen: BenchOptions, policy: Policy) -> Result:
    """Return the times of a training step, its operations, and the most memory that a later one holds."""
    given = make_training_batch(chosen, policy)
    on_host = {name: tensor.cpu() for name, tensor in given.items()}
    operations = TrainingOperations(policy)(on_host, policy)
    given |= policy.host_inputs(on_host)

    def loss() -> torch.Tensor:
        with torch.autocast(arguments.device, torch.bfloat16):
            return policy(**given).loss

    step, start, on_card = training_step(policy, loss), time.perf_counter(), arguments.device != "cpu"
    step()
    warm_up = time.perf_counter() - start
    if on_card:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        step()
    found = percentiles(step, arguments.device, 10 if arguments.size == "full" else 3)
    memory = {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if on_card else {}
    return {"operations": operations, **found, "warm_up_s": round(warm_up, 1), **memory}


def engines(arguments: argparse.Namespace) -> Iterator[Result]:
    """A run that passes from engine to engine: its losses next to those of one process that trains it all."""
    cards = 0 if arguments.device == "cpu" else torch.cuda.device_count()
    processes = 1 if cards == 1 else 2
    chain = ["single", "ddp", *(["fsdp2"] if cards else [])]
    if cards and importlib.util.find_spec("deepspeed") is not None:
        chain += ["zero2", "zero3"]
    work = arguments.out / "engines"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    measure_training.prepare(work, "pi0", "tiny" if arguments.size == "tiny" else "middle")
    steps = 4 * len(chain)
    launch(work, "single", 1, "whole", steps, steps)
    whole = losses(work / "whole")
    for number, engine in enumerate(chain, start=1):
        said = launch(work, engine, processes, "chain", 4 * number, steps, resume=number > 1)
        curve = losses(work / "chain")[4 * (number - 1) :]
        want = whole[4 * (number - 1) : 4 * number]
        apart = max((abs(a - b) / abs(b) for a, b in zip(curve, want, strict=False)), default=None)
        passed = said is None and len(curve) == len(want) and apart is not None and apart < SAME_CURVE
        result = {"engine": engine, "processes": processes if engine != "single" else 1}
        yield result | {
            "losses": curve,
            "difference": apart,
            "passed": passed,
            **({"said": said} if said else {}),
        }
        if not passed:
            return


def launch(
    work: Path, engine: str, processes: int, run: str, steps: int, last: int, resume: bool = False
) -> str | None:
    """Train up to a step as an engine; return the last line of what it said where it failed."""
    processes = 1 if engine == "single" else processes
    keys = {
        "policy.pretrained": work / "base",
        "policy.tokenizer": work / "tokenizer",
        "data.path": work / "data",
        "data.augment": "false",
        "data.validation_fraction": "0",
        "data.num_workers": "0",
        "train.batch_size": "2",
        "train.accumulation": 2 // processes,
        "train.steps": steps,
        "train.decay_steps": last,
        "train.warmup_steps": "2",
        "train.log_every": "1",
        "train.validate_every": "null",
        "train.tensorboard": "false",
        "train.precision": '"no"',
        "train.tf32": "false",
        "train.eps": "1e-6",  # or rounding becomes whole steps where a gradient is zero
        "output": work / run,
    }
    recipe = work / "recipe.yaml"
    recipe.write_text("policy: {type: pi0}\n")
    command = [sys.executable, "-m"]
    if engine != "single":
        command += ["accelerate.commands.launch", "--config_file", f"recipes/accelerate/{engine}.yaml"]
        command += ["--num_processes", str(processes), "-m"]
    command += ["vla", "train", str(recipe), *(f"{key}={value}" for key, value in keys.items())]
    ran = subprocess.run(
        [*command, *(["--resume"] if resume else [])],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return None if ran.returncode == 0 else (ran.stderr.strip().splitlines() or ["nothing said"])[-1]


def losses(run: Path) -> list[float]:
    """Return the losses of a run's steps."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [row["loss"] for row in rows if "loss" in row]


def bench(arguments: argparse.Namespace) -> Iterator[Result]:
    """`vla bench` against transformers' PI0, same weights."""
    report = run_bench(options(arguments, against="transformers", rounds=10, levels=LEVELS))
    yield {row.part: 1e3 * row.timing.median for row in report.rows}
    yield {ratio.name: ratio.value for ratio in report.ratios}


PARTS: dict[str, tuple[Callable[[argparse.Namespace], Iterator[Result]], int]] = {
    "parity": (parity, 150),
    "sample": (sample, 60),
    "compiled": (compiled, 90),
    "training_point": (training_point, 180),
    "triton": (triton, 240),
    "training": (training, 480),
    "lora": (lora, 240),
    "engines": (engines, 300),
    "endurance": (endurance, 90),
    "shapes": (shapes, 240),
    "bench": (bench, 120),
}
"""Name -> what it does, and its seconds at most; in order of value: the first four take 8 minutes at most."""
CPU_PATIENCE = 4
"""Times the limit that a trial on a CPU may take: compilers and Triton's interpreter are slow there."""
TRAINS = ("training_point", "training", "lora")


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
    with torch.enable_grad() if name in TRAINS else torch.no_grad():
        for result in PARTS[name][0](arguments):
            results.append(result)
            say(json.dumps(result))
            path.write_text(json.dumps(about | {"results": results}, indent=1) + "\n", encoding="utf-8")
    if wrong := [one for one in results if one.get("passed") is False]:
        sys.exit(f"{len(wrong)} of {len(results)} results are out of bounds: {wrong}")
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
        limit = PARTS[name][1] * (1 if arguments.device.startswith("cuda") else CPU_PATIENCE)
        command = [sys.executable, __file__, "--part", name, "--out", str(arguments.out)]
        command += ["--device", arguments.device, "--size", arguments.size]
        try:
            code = subprocess.run(command, timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired:
            code = f"more than {limit} s"
        if code != 0:
            failed.append(name)
            say(f"{name}: failed ({code}); what it measured is in {name}.part")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
