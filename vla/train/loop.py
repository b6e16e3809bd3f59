"""The training loop: fetch, loss, backward, clip, check, step, report.

Whatever is random in a step is seeded by what the step is (seed, step, micro-batch, rank), never drawn from
a running state, and the loader's position is two numbers. So a checkpoint and the recipe decide every later
step: a run that was killed and resumed has the same losses as one that was not, to the bit.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from vla.atomic import atomic_write
from vla.errors import TrainingError
from vla.policies.base import PolicyOutput, check_keywords
from vla.policies.registry import policy_entry
from vla.signals import ended_by_signals
from vla.train.checkpoint.checkpointer import Checkpointer
from vla.train.checkpoint.folder import RunFolder
from vla.train.checkpoint.on_disk import check_step
from vla.train.checkpoint.same_run import OtherRunError
from vla.train.ema import WeightAverage, decay_at
from vla.train.engine import Engine, check_recipe, make_engine
from vla.train.error_files import ErrorFiles
from vla.train.hints import say_hints
from vla.train.launch import Launch
from vla.train.monitor.diagnostics import Diagnostics, name_frames
from vla.train.monitor.flop_rate import FlopRate
from vla.train.monitor.means import ProcessMeans, RunningMeans, mean_by_name, scalars_of
from vla.train.monitor.metrics import DataWait, MetricsLog, ProgressDisplay
from vla.train.monitor.reproduce import check_recorded_data, record_start, run_identity
from vla.train.monitor.trackers import check_trackers, open_trackers
from vla.train.optim import check_sharding, learning_rate_at, make_optimizer, set_learning_rate
from vla.train.precision import set_matmul_precision
from vla.train.recipe import Recipe
from vla.train.rescue import explaining, rescued
from vla.train.resolve import resolve
from vla.train.seeds import TRAINING_LAYERS, TRAINING_NOISE, VALIDATION_NOISE, derive_seed
from vla.train.setup.robot import with_robot
from vla.train.setup.run import TrainingSetup, set_up
from vla.train.signals import signals_held, stoppable_run
from vla.types import Batch, SampleIds

OpenLoop = Callable[[Any, TrainingSetup], Mapping[str, float]]
"""Given the policy in evaluation mode and the job, returns numbers to record, by name."""

Plots = Callable[[Any, TrainingSetup], Mapping[str, bytes]]
"""Given the policy and the set-up likewise, returns PNG files by name."""

Memory = Callable[[Recipe, Any, Engine], str | None]
"""Given the recipe, the policy's config and the engine, returns a sentence, or None."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        folder: The run's folder.
        checkpoint: The newest checkpoint, a policy folder.
        step: Optimiser steps done.
        metrics: The newest value of every metric that this call recorded.
        stop_signal: The number of the signal (`vla.train.signals.SIGNALS`) that ended it early, in whichever
            process it came; None where the run is finished. It can be resumed.
    """

    folder: Path
    checkpoint: Path
    step: int
    metrics: dict[str, float]
    stop_signal: int | None

    @property
    def stopped_by_signal(self) -> bool:
        """Whether a signal ended it early."""
        return self.stop_signal is not None


def train(
    recipe: Recipe,
    resume: bool = False,
    open_loop: OpenLoop | None = None,
    progress: bool = True,
    plots: Plots | None = None,
    memory: Memory | None = None,
    rollouts: OpenLoop | None = None,
) -> TrainResult:
    """Run a recipe to its last step, or to the first signal to stop (SIGTERM, ...), and save the policy.

    Within it no other process can train into the same folder.

    Args:
        recipe: The run; `vla.train.checkpoint.folder` describes what is in its `output`.
        resume: Continue from the newest checkpoint in the output folder.
        open_loop: Called by the main process every `train.open_loop_every` steps.
        progress: Show a progress bar, or log lines where there is no terminal.
        plots: Called by the main process every `train.plot_every` steps.
        rollouts: Called by the main process every `train.rollout_every` steps; its `check`, if it has one,
            once before the first step, with the policy.
        memory: Called where a step runs out of memory, to say what it was predicted to take.

    Raises:
        TrainingError: The output folder is taken, held by another process, or holds nothing to resume; the
            loss is not finite; the disk is full; memory ran out; or another process has died: the reason is
            given where that one could write it.
        ConfigError: Policy, dataset and recipe do not fit each other.
        DatasetError: The dataset is missing or damaged.
        WeightsError: The pretrained policy is missing or damaged.
    """
    recipe = with_robot(resolve(recipe, policy_entry(recipe.policy.type).policy))
    check_trackers(recipe.train.trackers)
    folder, launch = RunFolder(recipe.output), Launch.from_environment()
    with ended_by_signals(), folder.claimed(launch):
        checkpoint, recipe = folder.start_from(recipe, resume)
        with ErrorFiles(folder.errors, launch):
            with explaining(recipe), folder.blaming(checkpoint):
                loop = Loop(recipe, folder, checkpoint, open_loop, plots, rollouts)
            return loop.run(progress, memory)


class Loop:
    """State of one training run; `run` is the loop, the other methods are its steps."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        checkpoint: Path | None,
        open_loop: OpenLoop | None,
        plots: Plots | None = None,
        rollouts: OpenLoop | None = None,
    ) -> None:
        self.recipe, self.settings, self.folder = recipe, recipe.train, folder
        self.plots = plots
        self._looks = ((self.settings.open_loop_every, open_loop), (self.settings.rollout_every, rollouts))
        self.engine = make_engine(recipe.train)
        self.accelerator = self.engine.accelerator
        check_recipe(recipe, self.engine)
        set_matmul_precision(recipe.train)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.job = set_up(recipe, checkpoint, self.rank, self.world, self.engine.shards_weights)
        if rollouts is not None and self.accelerator.is_main_process and hasattr(rollouts, "check"):
            rollouts.check(self.job.policy)
        self.flop_rate = FlopRate(self.job.policy, self.accelerator, recipe.train)  # before it is sharded
        optimizer = make_optimizer(self.job.policy, recipe.train)
        self.snapshots = Checkpointer(recipe, folder, self.engine, self.job.policy, optimizer)
        self.model, self.optimizer = self.accelerator.prepare(self.job.policy, optimizer)
        check_sharding(self.job.policy, recipe.train)
        decay = recipe.train.ema
        self.average = None if decay is None else WeightAverage(self.job.policy, decay)
        self.checkpoint, self.step, self.means = checkpoint, 0, RunningMeans()
        self.step_means, self.validation_means = (ProcessMeans(self.accelerator) for _ in range(2))
        self.metrics: dict[str, float] = {}
        self.diagnostics, self.data_wait = Diagnostics(self.job.policy, self.accelerator), DataWait()
        if checkpoint is not None:
            self._restore(checkpoint)
        self.first_step, self.batches = self.step, iter(self.job.loader)
        self.position, self.is_whole = self.job.loader.state_dict(), True  # those of `step`, for `_rescued`

    def run(self, progress: bool, memory: Memory | None = None) -> TrainResult:
        """Take the steps that are left, see `train`."""
        settings, stopped = self.settings, None
        stoppable = stoppable_run(self.accelerator, lambda: self.folder.lost_by_abort(self.step))
        with self._reporting(progress) as (log, display), stoppable as stop, self._rescued(memory):
            while self.step < settings.steps and stopped is None:
                values = self._take_step()
                self.means.add(values)
                self.is_whole = True
                display.advance(self.step, values["loss"])
                stopped = stop.anywhere()
                finished = self.step == settings.steps
                if self._is_logged(self.step):
                    values = display.report(
                        self.step, self.means.take() | self.data_wait.take() | self.flop_rate.take()
                    )
                    self._record(log, values | self.diagnostics.take())
                if self._due(settings.validate_every) and stopped is None:
                    with self._averaged():
                        self._record(log, display.say(self.step, self._validate()))
                if self._due(settings.save_every) or finished or stopped is not None:
                    self._save()  # before others' code has its turn
                for every, how in self._looks:
                    if self._due(every) and stopped is None:
                        self._record(log, display.say(self.step, self._called(how)))
                if self._due(settings.plot_every) and stopped is None:
                    self._plot()
        assert self.checkpoint is not None
        return TrainResult(self.folder.path, self.checkpoint, self.step, self.metrics, stopped)

    def _take_step(self) -> dict[str, float]:
        """Take one optimiser step; return its means over micro-batches and processes."""
        rate = learning_rate_at(self.step, self.settings)
        set_learning_rate(self.optimizer, rate)
        self.model.train()
        is_logged = self._is_logged(self.step + 1)
        reports, samples = [], []
        for micro in range(self.settings.accumulation):
            batch, ids = self._next_batch()
            with self.accelerator.accumulate(self.model), self.flop_rate.measured():
                output = self._forward(batch, micro)
                self.accelerator.backward(output.loss)
            reports.append(scalars_of(output))
            samples.append(ids)
            if is_logged:
                self.diagnostics.add(output, batch)
        if is_logged:
            self.diagnostics.finish(self.model)
        norm = self._clip()
        values = self.step_means(mean_by_name(reports) | {"gradient_norm": norm})
        if not all(map(math.isfinite, values.values())):
            raise self._non_finite(values, reports, samples)
        self.is_whole = False
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(decay_at(self.step, self.settings))
        self.step, self.position = self.step + 1, self.job.loader.state_dict()
        return values | {"learning_rate": rate}

    def _clip(self) -> torch.Tensor:
        """Clip the gradient and return its norm; DeepSpeed has clipped already, and taken its step."""
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return torch.as_tensor(norm, device=self.accelerator.device)

    def _next_batch(self) -> tuple[dict[str, Any], SampleIds]:
        with signals_held(), self.data_wait:
            batch, ids = next(self.batches)
        self.flop_rate.add(batch)
        return self._to_device(batch), ids

    def _to_device(self, batch: Batch) -> dict[str, Any]:
        """Return a batch on the device, and what the host read off it before."""
        known, device = self.job.policy.host_inputs(batch), self.accelerator.device
        return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()} | known

    def _forward(self, batch: dict[str, Any], micro: int) -> PolicyOutput:
        if self.step == self.first_step:
            check_keywords(type(self.job.policy).forward, batch, type(self.job.policy))
        # Numbered over all processes: what two of them draw is what one draws in two micro-batches.
        now = (self.step, micro * self.world + self.rank, 0)
        torch.manual_seed(derive_seed(self.settings.seed, TRAINING_LAYERS, *now))  # dropout and the like
        with self.accelerator.autocast():  # which accelerate does by itself, but not under FSDP2
            return self.model(**batch, generator=self._generator(TRAINING_NOISE, *now))

    def _generator(self, *numbers: int) -> torch.Generator:
        seed = derive_seed(self.settings.seed, *numbers)
        return torch.Generator(self.accelerator.device).manual_seed(seed)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Return the mean loss and metrics over the same held-out batches and the same noise every time."""
        loader = self.job.validation
        if loader is None:
            return {}
        self.model.eval()
        reports = []
        loader.load_state_dict({"epoch": 0, "batch": 0})
        batches = min(self.settings.validation_batches, loader.batches_per_epoch)
        for number, (batch, _) in zip(range(batches), loader, strict=False):
            generator = self._generator(VALIDATION_NOISE, number * self.world + self.rank, 0)
            with self.accelerator.autocast():
                output = self.model(**self._to_device(batch), generator=generator)
            reports.append(scalars_of(output))
        means = self.validation_means(mean_by_name(reports))
        return {f"validation_{name}": value for name, value in means.items()}

    def _called(self, how: Callable[..., Mapping[str, Any]] | None) -> dict[str, Any]:
        """Call what looks at the policy, in the main process, and return what it found; the others wait."""
        found: dict[str, Any] = {}
        with self._averaged():
            if how is not None and self.accelerator.is_main_process:
                with self._sampling():
                    found = dict(how(self.job.policy.eval(), self.job))
            self.accelerator.wait_for_everyone()
        return found

    def _plot(self) -> None:
        for name, png in self._called(self.plots).items():
            self.folder.check_claim()
            self.folder.plots.mkdir(exist_ok=True)
            atomic_write(self.folder.plots / f"step-{self.step:06d}_{name}.png", png)

    def _averaged(self) -> AbstractContextManager[None]:
        """Give the policy its averaged weights within the block, where there is an average."""
        return nullcontext() if self.average is None else self.average.averaged()

    def _sampling(self) -> AbstractContextManager[Any]:
        """Compute samples as losses are computed, where a frozen base has another dtype than its adapter."""
        mixed = self.job.policy.adapter is not None and self.settings.precision == "bf16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16) if mixed else nullcontext()

    def _non_finite(
        self, values: dict[str, float], reports: list[dict[str, torch.Tensor]], samples: list[SampleIds]
    ) -> TrainingError:
        """Return the error, which names the samples of the batch; the optimiser has not seen them."""
        guilty = [ids for report, ids in zip(reports, samples, strict=True) if not report["loss"].isfinite()]
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        saved = (
            f"the last checkpoint is {self.checkpoint}" if self.checkpoint else "nothing has been saved yet"
        )
        return TrainingError(
            f"Step {self.step + 1} is not finite ({shown}), so it was not taken; {saved}. "
            f"In the batch: {name_frames(guilty or samples)}."
        )

    def _is_logged(self, step: int) -> bool:
        return step % self.settings.log_every == 0 or step == self.settings.steps

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    # -- the folder -----------------------------------------------------------------------------------

    @contextmanager
    def _reporting(self, progress: bool) -> Iterator[tuple[MetricsLog | None, ProgressDisplay]]:
        """Open the run's folder and its records, in the main process, and a display."""
        main, settings = self.accelerator.is_main_process, self.settings
        samples = settings.batch_size * settings.accumulation * self.world
        log = None
        if main:
            say_hints(self.recipe, self.checkpoint, self.step)
            self.folder.create(self.recipe, anew=self.checkpoint is None)
            record_start(
                self.folder.reproduce,
                self.recipe,
                self.step,
                self.job.fingerprints,
                self.engine.name,
                self.world,
                self.job.revisions,
            )
            wanted = settings.tensorboard or "tensorboard" in settings.trackers
            tensorboard = self.folder.tensorboard if wanted else None
            identity = run_identity(self.folder.reproduce)
            trackers = open_trackers(settings.trackers, self.folder.path, self.recipe.flat(), identity)
            log = MetricsLog(self.folder.metrics, tensorboard, self.step, trackers)
        try:
            with ProgressDisplay(settings.steps, self.step, samples, show=progress and main) as display:
                yield log, display
        finally:
            if log is not None:
                log.close()

    def _record(self, log: MetricsLog | None, values: dict[str, float]) -> None:
        self.metrics |= values
        if log is not None and values:
            log.write(self.step, values)

    def _rescued(self, memory: Memory | None) -> AbstractContextManager[None]:
        """Say in one line what ended the run from below, and save the steps that were finished."""

        def predict() -> str | None:
            return None if memory is None else memory(self.recipe, self.job.policy.config, self.engine)

        return rescued(self.recipe, lambda: self.step, self._save_rest, predict)

    def _save_rest(self) -> str:
        """Save the finished steps where one process can do that alone; return what can be resumed from."""
        if self.world == 1 and self.is_whole and not self.engine.is_zero:
            self.batches = iter(())  # its workers end
            return self.folder.save_unsaved(self.step, self._save)
        return self.folder.save_unsaved(self.step, None)

    def _save(self) -> None:
        self.folder.check_claim()
        rest = {
            "step": self.step,
            "processes": self.world,
            "accumulation": self.settings.accumulation,
            "loader": self.position,
            "means": self.means.state_dict(),
        }
        self.checkpoint = self.snapshots.save(self.step, rest, self.model, self.optimizer, self.average)

    def _restore(self, checkpoint: Path) -> None:
        """Continue from a checkpoint; its weights are in the policy already."""
        state = self.snapshots.restore(checkpoint, self.optimizer, self.average)
        ours, theirs = self.settings.accumulation, state.get("accumulation", self.settings.accumulation)
        if theirs * state["processes"] != ours * self.world:
            raise OtherRunError(
                f"{self.checkpoint} was trained by {state['processes']} processes x {theirs} accumulated "
                f"batches, so steps of {theirs * state['processes']} batches, and cannot be resumed with "
                f"{self.world} x {ours} = {self.world * ours}: the loss curve would break. Change "
                "train.accumulation along with the number of processes."
            )
        check_recorded_data(self.folder.reproduce, self.job.fingerprints)
        check_step(checkpoint, state)
        self.job.loader.load_state_dict(state["loader"])
        self.means.load_state_dict(state["means"])
        self.step = state["step"]
