"""Record, train with and without known first steps, and let every strategy meet the same layouts."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from vla_client.execution import Pausing, Prefetch, RealTimeChunking, TemporalEnsembling

from vla.bench.execution.episodes import MakeStrategy, Trace, run_episodes
from vla.bench.execution.options import ExecutionOptions
from vla.bench.execution.real_time import run_in_real_time, slow_client
from vla.bench.execution.report import ExecutionReport, row_of
from vla.bench.execution.work import work_folder
from vla.bench.machine import describe_machine, versions
from vla.demo.demonstrations import record_demonstrations
from vla.demo.run import packaged_recipe
from vla.demo.twins import train_side_by_side
from vla.errors import ConfigError
from vla.policies.auto import load_for_episodes

Say = Callable[[str], None]

FREE, PREFIX = "free", "prefix"
"""The two policies: trained as usual, and with known first steps."""


def run_execution(options: ExecutionOptions, say: Say = print) -> ExecutionReport:
    """Measure every strategy.

    Raises:
        ConfigError: Delay and execution horizon do not fit the policy's chunks.
        TrainingError: A training failed.
    """
    report = ExecutionReport(describe_machine(torch.device("cpu")), versions(), asdict(options))
    _check_fits(options)
    with work_folder(options) as folder:
        checkpoints = trained(options, folder, say)
        policies = {name: load_for_episodes(path) for name, path in checkpoints.items()}
        seeds = range(options.first_layout, options.first_layout + options.layouts)
        without: dict[str, Any] = {}
        for name, policy, latency, make in strategies(options):
            say(f"{name}: {options.layouts} layouts")
            traces = run_episodes(
                policies[policy],
                make,
                options.robot,
                seeds,
                latency=latency,
                batch=options.batch,
                noise_seed=options.seed,
            )
            without.setdefault(policy, traces)
            report.rows.append(row_of(name, traces, without[policy], options.robot.fps))
        if options.real_time:
            _real_time(options, checkpoints, {name: list(one) for name, one in without.items()}, report, say)
    return report


def _check_fits(options: ExecutionOptions) -> None:
    """Raise `ConfigError` unless d <= s <= H - d, before anything is recorded or trained."""
    horizon = int(
        packaged_recipe("detour.yaml", ["data.path=-", "output=-"], None).policy.config["action_horizon"]
    )
    delay, execute = options.delay, options.execute
    if not delay <= execute <= horizon - delay:
        raise ConfigError(
            f"execute must lie in {delay} to {horizon - delay}, the steps that a chunk takes and those that "
            f"are left of {horizon} then, got {execute}."
        )
    if delay > options.max_prefix:
        raise ConfigError(
            f"max_prefix must be at least {delay}, the steps that a chunk takes, got {options.max_prefix}."
        )


def _real_time(
    options: ExecutionOptions,
    checkpoints: dict[str, Path],
    without: dict[str, list[Trace]],
    report: ExecutionReport,
    say: Say,
) -> None:
    """Let the strategies that do not wait meet the first layouts in real time, over the network."""
    seeds = range(options.first_layout, options.first_layout + options.real_time)
    hold = "last" if options.robot.absolute else "zero"
    how: dict[str, tuple[str, Any, dict[str, Any]]] = {
        "asynchronous": (FREE, Prefetch, {}),
        "guided": (FREE, RealTimeChunking, {"method": "guided", "initial_delay": options.delay}),
        "prefix": (PREFIX, RealTimeChunking, {"method": "prefix"}),
    }
    for name, (policy, kind, keywords) in how.items():
        say(f"{name}, in real time: {options.real_time} layouts")
        make = partial(kind, execute=options.execute, hold=hold, **keywords)
        with slow_client(checkpoints[policy], options.latency) as client:
            traces, late = run_in_real_time(client, make, options.robot, seeds)
        before = without[policy][: options.real_time]
        report.real_time.append(row_of(name, traces, before, options.robot.fps))
        report.late[name] = late


def strategies(options: ExecutionOptions) -> Iterator[tuple[str, str, int, MakeStrategy]]:
    """Yield every strategy with its policy and latency; each policy's first one has no latency."""
    hold = "last" if options.robot.absolute else "zero"
    policy: Any = _Asked()
    delay, execute = options.delay, options.execute

    def made(kind: Any, **how: Any) -> MakeStrategy:
        return lambda engine: kind(policy, execute=execute, engine=engine, **how)

    yield "no latency", FREE, 0, made(Prefetch)
    yield "pausing", FREE, delay, made(Pausing, hold=hold)
    yield "asynchronous", FREE, delay, made(Prefetch)
    yield "ensembling", FREE, delay, partial(_ensembling, policy)
    yield "guided", FREE, delay, made(RealTimeChunking, method="guided", initial_delay=delay)
    yield "no latency, trained with prefixes", PREFIX, 0, made(Prefetch)
    yield (
        "prefix",
        PREFIX,
        delay,
        made(RealTimeChunking, method="prefix", initial_delay=delay, max_delay=options.max_prefix),
    )


def _ensembling(policy: Any, engine: Any) -> TemporalEnsembling:
    return TemporalEnsembling(policy, engine=engine)


class _Asked:
    """Stands for the policy of a strategy whose engine answers."""

    def infer(self, observation: Any, **options: Any) -> Any:
        raise AssertionError("the engine answers")

    def reset(self) -> None:
        return None


def trained(options: ExecutionOptions, folder: Path, say: Say) -> dict[str, Path]:
    """Return the checkpoints of both policies, trained where they are not there yet."""
    dataset = folder / f"demonstrations_{'absolute' if options.robot.absolute else 'displacements'}"
    if not dataset.exists():
        say("recording")
        record_demonstrations(
            dataset,
            options.demonstrations,
            options.seed,
            embodiment=options.robot,
            pace=options.pace,
            clearance=options.clearance,
        )
    runs = {name: folder / f"{options.actions}_{name}" for name in (FREE, PREFIX)}
    missing = {name: run for name, run in runs.items() if not run.exists()}
    for run in runs.values():
        if run.exists() and not (run / "checkpoints" / f"step-{options.steps:06d}").is_dir():
            raise ConfigError(
                f"The training in {run} did not reach its {options.steps} steps: resume it by "
                f"`vla train {run}.yaml --resume`, or remove the folder to begin it again."
            )
    if missing:
        say("training " + " and ".join(missing))
        train_side_by_side({name: _recipe(options, dataset, name, run) for name, run in missing.items()})
    return {name: run / "checkpoints" / "last" for name, run in runs.items()}


def _recipe(options: ExecutionOptions, dataset: Path, name: str, output: Path) -> Any:
    overrides = [f"data.path={dataset}", f"output={output}", f"train.seed={options.seed}"]
    if options.actions == "relative":
        overrides.append("data.delta_mask=[true,true]")
    if name == PREFIX:
        overrides += [
            f"policy.config.max_action_prefix={options.max_prefix}",
            "policy.config.action_prefix_decay=0.3",  # chunks without known steps stay the most frequent
            "policy.config.draws_per_observation=4",  # several lengths of prefix for each observation
        ]
    return packaged_recipe("detour.yaml", overrides, options.steps)
