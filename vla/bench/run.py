"""The measurement from end to end."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from vla.bench.flops import count_flops
from vla.bench.machine import describe_machine, matmul_peak, peak_memory, versions
from vla.bench.options import DTYPES, BenchOptions
from vla.bench.report import Report, Row
from vla.bench.subject import make_noise, make_observation, make_subject, make_training_batch
from vla.bench.timing import Clock, Work, measure
from vla.bench.training import reason_not_to_train, training_step
from vla.policies.base import Policy
from vla.policies.registry import reference_of

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

    def _time(self, works: dict[str, Work]) -> None:
        """Warm every work up while its operations are counted, then time them all in turn."""
        flops = {}
        for name, work in works.items():
            self.say(f"warming up: {name}")
            flops[name] = count_flops(work)
        self.say(f"timing: {', '.join(works)}")
        for name, timing in measure(works, self.clock, self.options.rounds).items():
            self.report.rows.append(Row(name, timing, flops[name]))

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
        if present > 1:
            alone = make_observation(self.options, policy, cameras=1)
            works[fewer] = lambda: policy.sample_actions(**alone, noise=noise)
        with torch.no_grad():
            self._time(works)
        if present > 1:
            self.report.compare(f"1 camera / {present} cameras", fewer, whole)

    # -- training -------------------------------------------------------------------------------------

    def _time_training(self) -> None:
        if reason := reason_not_to_train(self.policy, self.clock.device):
            self.report.skipped["train"] = reason
            return
        batch, policy = make_training_batch(self.options, self.policy), self.policy.train()

        def step(**draws: int) -> Work:
            return training_step(policy, lambda: policy(**batch, **draws).loss)

        names = {draws: f"train, {draws} draw{'s' * (draws > 1)}" for draws in self.options.draws}
        if "draws" in policy.leaves_out:
            works = {"train": step()}
            for draws, name in names.items():
                if draws > 1:
                    self.report.skipped[name] = f"{type(policy).__name__} draws once per observation at most"
        else:
            works = {name: step(draws_per_observation=draws) for draws, name in names.items()}
        self._time(works)
        first, *others = works
        for other in others:
            self.report.compare(f"{other} / {first}", other, first)
        self._note_memory("training")
        policy.eval()

    # -- against another implementation ---------------------------------------------------------------

    def _compare(self) -> None:
        policy, noise, name = self.policy, self.noise, str(self.options.against)
        self.say(f"building the policy of {name}")
        theirs = reference_of(policy, name)
        observation = make_observation(self.options, policy)
        with torch.no_grad():
            own = policy.sample_actions(**observation, noise=noise)
            other = theirs.sample_actions(observation, noise)
            self.report.largest_difference = (own.float() - other.float()).abs().max().item()
            self._time(
                {
                    "sample, vla": lambda: policy.sample_actions(**observation, noise=noise),
                    f"sample, {name}": lambda: theirs.sample_actions(observation, noise),
                }
            )
        self.report.compare(f"sample: {name} / vla", f"sample, {name}", "sample, vla")
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
            }
        )
        self.report.compare(f"train: {name} / vla", f"train, {name}", "train, vla")
