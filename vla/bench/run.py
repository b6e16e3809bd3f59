"""The measurement from end to end."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from vla.bench.flops import count_flops
from vla.bench.machine import describe_machine, matmul_peak, peak_memory, versions
from vla.bench.options import DTYPES, BenchOptions
from vla.bench.report import Report, Row
from vla.bench.subject import make_noise, make_observation, make_subject, make_training_batch
from vla.bench.timing import Clock, Work, measure
from vla.bench.training import (
    compiled_twin,
    fused_adamw,
    reason_not_to_train,
    training_step,
    warmed_up,
)
from vla.fast.levels import FormError
from vla.policies.base import Policy
from vla.policies.registry import reference_of
from vla.types import Batch

Say = Callable[[str], None]
"""Receives one line about what is going on."""


def run_bench(options: BenchOptions, say: Say = lambda line: None) -> Report:
    """Build the policy and time its parts.

    Args:
        options: What to measure.
        say: Told about every stage, since some take minutes.

    Raises:
        ConfigError: The options do not fit each other, the machine or the policy.
        WeightsError: A checkpoint could not be loaded.
    """
    device = options.torch_device
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    try:
        settings = asdict(options) | {"threads": torch.get_num_threads()}
        report = Report(describe_machine(device), versions(), settings)
        _Bench(options, report, say).run()
    finally:
        torch.set_num_threads(before)
    return report


class _Bench:
    """One measurement; every stage adds to the report."""

    def __init__(self, options: BenchOptions, report: Report, say: Say) -> None:
        self.options, self.report, self.say = options, report, say
        self.clock = Clock(options.torch_device, options.clock == "process")

    def run(self) -> None:
        options = self.options
        self.say("building the policy")
        start = time.perf_counter()
        self.policy: Policy = make_subject(options)
        self.report.build_seconds = time.perf_counter() - start
        parameters = list(self.policy.parameters())
        self.report.parameters = sum(p.numel() for p in parameters)
        self.report.weights_bytes = sum(p.numel() * p.element_size() for p in parameters)
        self._note_memory("build")
        self.noise = make_noise(options, self.policy)
        self._time_acting()
        self._note_memory("sampling")
        if options.train:
            self._time_training()
        if options.against is not None:
            self._compare()
        self.say("measuring the matmul peak")
        self.report.peak = matmul_peak(DTYPES[options.dtype], self.clock)

    def _note_memory(self, stage: str) -> None:
        self.report.peak_memory[stage] = peak_memory(self.clock.device)

    def _time(
        self,
        works: dict[str, Work],
        counted_as: Mapping[str, str] | None = None,
        samples: int | None = None,
    ) -> None:
        """Warm every work up while its operations are counted, then time them all in turn.

        Args:
            works: What to run, by name.
            counted_as: Works that cannot be counted (compiled ones, recorded graphs) -> one that computes the
                same.
            samples: Observations that each learns from.
        """
        flops: dict[str, int | None] = {}
        counted_as = counted_as or {}
        for name, work in works.items():
            self.say(f"warming up: {name}")
            if name in counted_as:
                work()
                flops[name] = flops[counted_as[name]]
            else:
                flops[name] = count_flops(work)
        self.say(f"timing: {', '.join(works)}")
        for name, timing in measure(works, self.clock, self.options.rounds).items():
            self.report.rows.append(Row(name, timing, flops[name], samples))

    # -- acting ---------------------------------------------------------------------------------------

    def _time_acting(self) -> None:
        """Time what the policy's sampling consists of, all of it, and all of it with one camera."""
        policy, noise = self.policy, self.noise
        slots = len(policy.config.cameras)
        present = self.options.cameras_present or slots
        observation = make_observation(self.options, policy)
        works: dict[str, Work] = dict(policy.timed_parts(observation))
        whole = f"sample, {present}/{slots} cameras" if slots else "sample"
        works[whole] = lambda: policy.sample_actions(**observation, noise=noise)
        fewer = f"sample, 1/{slots} cameras"
        alone = make_observation(self.options, policy, cameras=1) if present > 1 else {}
        if alone:
            works[fewer] = lambda: policy.sample_actions(**alone, noise=noise)
        same: dict[str, str] = {}
        for level, sampler in self._samplers([one for one in (observation, alone) if one]).items():
            works[f"{whole}, {level}"] = partial(sampler.sample_actions, **observation, noise=noise)
            same[f"{whole}, {level}"] = whole
            if alone:
                works[f"{fewer}, {level}"] = partial(sampler.sample_actions, **alone, noise=noise)
                same[f"{fewer}, {level}"] = fewer
        with torch.no_grad():
            self._time(works, counted_as=same)
        for level in self.report.levels:
            of_level = "" if level == "plain" else f", {level}"
            if alone:
                name = f"1 camera / {present} cameras{of_level}"
                self.report.compare(name, f"{fewer}{of_level}", f"{whole}{of_level}")
            if of_level:
                self.report.compare(f"sample: plain / {level}", whole, f"{whole}{of_level}")

    def _samplers(self, observations: list[Batch]) -> dict[str, Any]:
        """Return the inference forms at the levels that are asked for, warm, and note what they take."""
        policy, noise = self.policy, self.noise
        made: dict[str, Any] = {}
        start = time.perf_counter()
        plain, *_ = [policy.sample_actions(**one, noise=noise) for one in observations]
        taken = time.perf_counter() - start
        self.report.levels["plain"] = {
            "warm_up_seconds": taken,
            "programs": 0,
            "resident_bytes": self.report.weights_bytes,
            "extra_bytes": 0,
            "difference": 0.0,
        }
        for level in self.options.wanted_levels[1:]:
            self.say(f"making the inference form, level {level}")
            try:
                start = time.perf_counter()
                sampler = policy.fast(level)
                own, *_ = [sampler.sample_actions(**one, noise=noise) for one in observations]
                taken = time.perf_counter() - start
            except FormError as error:
                if self.options.levels:  # named by the user
                    self.report.skipped[f"sample, {level}"] = str(error)
                continue
            made[level] = sampler
            self.report.levels[level] = {
                "warm_up_seconds": taken,
                "programs": sum(sampler.counts.built.values()),
                "resident_bytes": sampler.resident_bytes,
                "extra_bytes": sampler.extra_bytes,
                "difference": (own.float() - plain.float()).abs().max().item(),
            }
            self._note_memory(f"level {level}")
        return made

    # -- training -------------------------------------------------------------------------------------

    def _time_training(self) -> None:
        if reason := reason_not_to_train(self.policy, self.clock.device):
            self.report.skipped["train"] = reason
            return
        batch, policy = make_training_batch(self.options, self.policy), self.policy.train()
        optimizer = fused_adamw(policy)

        def step(model: Policy = policy, **draws: int) -> Work:
            return training_step(model, lambda: model(**batch, **draws).loss, optimizer)

        names = {draws: f"train, {draws} draw{'s' * (draws > 1)}" for draws in self.options.draws}
        if "draws" in policy.leaves_out:
            works = {"train": step()}
            for draws, name in names.items():
                if draws > 1:
                    self.report.skipped[name] = f"{type(policy).__name__} draws once per observation at most"
        else:
            works = {name: step(draws_per_observation=draws) for draws, name in names.items()}
        plain, same = dict(works), {}
        for scope in self.options.compile:
            twin, ending = compiled_twin(policy, scope), f", compiled {scope}"
            draws = [{}] if "draws" in policy.leaves_out else [{"draws_per_observation": n} for n in names]
            self.say(f"compiling: {scope}")
            made = {name + ending: step(twin, **some) for name, some in zip(plain, draws, strict=True)}
            made, failed = warmed_up(made)
            self.report.skipped |= failed
            works |= made
            same |= {name: name.removesuffix(ending) for name in made}
        self._time(works, same, self.options.batch)
        first, *others = plain
        for other in others:
            self.report.compare(f"{other} / {first}", other, first)
        for name, base in same.items():
            self.report.compare(f"{base} / {name}", base, name)
        self._note_memory("training")
        policy.eval()

    # -- against another implementation ---------------------------------------------------------------

    def _compare(self) -> None:
        policy, noise, name = self.policy, self.noise, str(self.options.against)
        self.say(f"building the policy of {name}")
        theirs = reference_of(policy, name)
        observation = make_observation(self.options, policy)
        fast = {level: policy.fast(level).sample_actions for level in self.report.levels if level != "plain"}
        with torch.no_grad():
            own = policy.sample_actions(**observation, noise=noise)
            other = theirs.sample_actions(observation, noise)
            self.report.largest_difference = (own.float() - other.float()).abs().max().item()
            works: dict[str, Work] = {
                "sample, vla": lambda: policy.sample_actions(**observation, noise=noise),
                f"sample, {name}": lambda: theirs.sample_actions(observation, noise),
            }
            levels = {
                f"sample, vla {level}": partial(sample, **observation, noise=noise)
                for level, sample in fast.items()
            }
            self._time(works | levels, counted_as=dict.fromkeys(levels, "sample, vla"))
        for own_row in ("sample, vla", *levels):
            self.report.compare(f"sample: {name} / {own_row[8:]}", f"sample, {name}", own_row)
        if not self.options.train:
            return
        if reason := reason_not_to_train(policy, self.clock.device):
            self.report.skipped[f"train against {name}"] = reason
            return
        self._compare_training(theirs, name)

    def _compare_training(self, theirs: Any, name: str) -> None:
        policy = self.policy.train()
        batch = make_training_batch(self.options, policy)
        tau = torch.full((self.options.batch,), 0.5, device=self.noise.device)
        batch |= {"noise": self.noise, "tau": tau}
        self._time(
            {
                "train, vla": training_step(policy, lambda: policy(**batch).loss),
                f"train, {name}": training_step(theirs.model.train(), lambda: theirs.loss(batch)),
            },
            samples=self.options.batch,
        )
        self.report.compare(f"train: {name} / vla", f"train, {name}", "train, vla")
