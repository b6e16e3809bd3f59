"""A policy on the robot's side: observations and actions in the robot's units.

    robot_policy = vla.load("runs/mine/checkpoints/last")
    session = robot_policy.start()                      # an episode
    chunk = session.infer(observation)["actions"]       # [a, d], executable from now on

A session remembers the frames of the past that the policy reads; of a policy that reads the present alone it
remembers nothing, and `robot_policy.infer(observation)` is the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vla_client.continuation import Continuation

from vla.checkpoints.agreement import check_agreement
from vla.errors import ConfigError, ObservationError, StatisticsError
from vla.fast.programs import WarmUp
from vla.interface import RobotInterface
from vla.objectives.noise import Generators
from vla.policies.acting.chunks import (
    Pick,
    check_continuing,
    check_pick,
    groups,
    known_of,
    max_prefix,
    methods,
    picked,
    split_noise,
    variant_of,
)
from vla.policies.acting.session import Session
from vla.policies.base import Policy, accepted, check_keywords
from vla.policies.observation import (
    Observation,
    ObservationGuard,
    check_noise,
    execution_device,
    naming,
)
from vla.policies.warm_up import warm_up
from vla.transforms.actions import REFERENCE_STATE
from vla.transforms.base import Pipeline
from vla.transforms.batch import collate
from vla.transforms.named_pipelines import check_choice
from vla.transforms.task import DefaultTask
from vla.types import STATE_KEY, Sample, as_count, check_generators, check_num_steps, default_device_cpu


def pipeline_of(policy: Policy, name: str | None) -> Pipeline | None:
    """Return one robot's pipeline; None until fitted to a dataset.

    Raises:
        ConfigError: The policy has no such pipeline, or has several and none was named.
    """
    check_choice(policy.pipeline_names, name)
    return policy.pipelines.get(name)


class RobotPolicy:
    """Weights and pipeline together; `infer` takes what the robot measures and returns what it should do.

    Args:
        policy: With its pipeline. It is put in evaluation mode.
        pipeline: Which robot of a policy that has the pipelines of several: its name.
        fast: Level at which chunks are sampled: see `Policy.fast`.
        highest: With `fast=True`: no higher level than this.
        release_plain: Whether to let go of weights that the inference form does without: see `vla.load`.

    Attributes:
        sampler: What samples: the policy, or its inference form.
        needs_task: Whether an observation must bring an instruction.
        window: Which frames the policy reads and predicts, in control steps: those of the dataset that it
            learned from, at its frequency.

    Raises:
        StatisticsError: The policy has no pipeline.
        ConfigError: It has those of several robots, and `pipeline` names none of them; or the pipeline makes
            something else than the policy reads; or `policy` is not one, or has no values in its weights; or
            it cannot sample at level `fast`.
    """

    def __init__(
        self,
        policy: Policy,
        pipeline: str | None = None,
        fast: str | bool = False,
        highest: str | None = None,
        release_plain: bool = False,
    ) -> None:
        if not hasattr(policy, "pipeline_names"):
            raise ConfigError(
                f"RobotPolicy takes a policy, such as vla.AutoPolicy.from_pretrained returns, got a "
                f"{type(policy).__name__}. A checkpoint's folder or hub id is opened by vla.load."
            )
        chosen = pipeline_of(policy, pipeline)
        if chosen is None:
            raise StatisticsError(
                "This checkpoint carries no pipeline and no normalisation statistics, so it cannot act. Set "
                "policy.pipeline, or fine-tune it: vla train RECIPE policy.pretrained=<checkpoint>."
            )
        check_agreement(policy, chosen)
        execution_device(policy)
        self.policy = policy.eval()
        options = {} if release_plain is False else {"release_plain": release_plain}
        self.sampler = policy.fast(fast, highest=highest, **options)
        self.pipeline = chosen
        self.window = policy.config.window
        self.needs_task = policy.reads_text and self.pipeline.find(DefaultTask) is None
        self._guard = ObservationGuard(self.pipeline, needs_task=self.needs_task)

    @property
    def past(self) -> int:
        """Steps back to the earliest frame that the policy reads; 0 where it reads the present alone."""
        return self.window.past

    @property
    def interface(self) -> RobotInterface | None:
        """What goes between robot and policy, with a chunk's executable steps; None if not recorded."""
        recorded = self.pipeline.interface
        return None if recorded is None else replace(recorded, horizon=self.window.executable)

    @property
    def continues_by(self) -> tuple[str, ...]:
        """Methods of a `Continuation` that `infer` takes: "guided", "prefix"."""
        return methods(self.policy)

    @property
    def max_prefix(self) -> int:
        """Longest `delay` by method "prefix": what the policy was trained with; 0: none."""
        return max_prefix(self.policy)

    @property
    def device(self) -> torch.device:
        """Where the policy's tensors belong: where its weights lie, or whereto `accelerate` takes them."""
        return execution_device(self.policy)

    @property
    def last_level(self) -> str:
        """Level of the last chunk: a lower one where it could not be had for its shape."""
        return getattr(self.sampler, "last_level", "plain")

    def start(self) -> Session:
        """Begin an episode."""
        return Session(self)

    def reset(self) -> None:
        """Forget the episode; it is the sessions that remember one."""

    def infer(
        self,
        observation: Observation,
        *,
        noise: np.ndarray | None = None,
        generator: torch.Generator | None = None,
        text: bool = False,
        num_steps: int | None = None,
        continuing: Continuation | None = None,
        samples: int = 1,
        pick: Pick | None = None,
    ) -> dict[str, Any]:
        """Return the chunk for one observation, of a policy that reads the present alone.

        Args:
            observation: `"observation.images.<camera>"` uint8 `[h, w, 3]` each (absent cameras left out),
                `"observation.state"` `[d]` in robot units, finite, `"task"` the instruction (may be left out,
                or empty, where the robot's description has one, or the policy reads no text). Arrays may be
                numpy's, torch's or lists (of an image: of whole numbers in [0, 255]); of a list of one text,
                the text is taken. Other keys are not read, which the log says once.
            noise: `[a, m]` in model space, where sampling starts, `[n, a, m]` for several samples, with as
                many steps as the policy's chunks; drawn where not given.
            generator: Source of the noise, on the policy's device.
            text: Whether to generate the response text as well.
            num_steps: Steps of sampling, 1 to 10000; the policy's own number where not given.
            continuing: The rest of the chunk that is being executed, which the new one has to meet. It is in
                robot units, whatever the policy predicts: with relative actions it is taken relative to the
                state that is observed now. Where none of it counts (`delay=0` with `schedule="zeros"`, or no
                actions), the chunk is sampled freely.
            samples: How many chunks are drawn over one pass through images and text; the best is returned.
            pick: Which is the best: "medoid", whose distances to the others have the smallest sum; "nearest",
                the nearest to `continuing` over the steps that it has; or a function of the chunks
                `[n, a, d]` in robot units and the observation that returns the place of one. Distances are
                measured on normalised actions. None: "nearest" where there is something to continue, else
                "medoid".

        Returns:
            `"actions"` float32 `[a, d]` in robot units, the steps of the chunk that can be executed from now
            on (without those before the window's `first_executable`), and `"text"` where asked for.

        Raises:
            ObservationError: A camera, the state, the task or the noise does not fit the checkpoint or cannot
                be acted on; it is a `ShapeError`.
            ActionError: The policy's answer is not finite, so it is withheld.
            ConfigError: The policy reads frames of the past, generates no text, or has no `num_steps`; or
                `generator` is not one; or the policy cannot continue a chunk so, or draw several.
        """
        return self._infer_one(
            observation, noise, samples, generator=generator, text=text, num_steps=num_steps,
            continuing=None if continuing is None else [continuing], pick=pick,
        )  # fmt: skip

    def _infer_one(self, observation: Any, noise: Any, samples: int, **options: Any) -> dict[str, Any]:
        """Return the chunk of an observation, or of a pair of session and observation."""
        if noise is not None:
            one, steps = as_count(samples, "samples") == 1, self.window.horizon
            noise = check_noise(noise, "a m" if one else "b a m", None if one else samples, steps)
            noise = noise[None] if one else noise
        return self.infer_batch([observation], noise=noise, samples=samples, **options)[0]

    @torch.no_grad()
    @default_device_cpu()
    def infer_batch(
        self,
        observations: Sequence[Observation | tuple[Session, Observation]],
        *,
        noise: np.ndarray | None = None,
        generator: Generators | None = None,
        text: bool = False,
        num_steps: int | None = None,
        continuing: Sequence[Continuation | None] | None = None,
        samples: int = 1,
        pick: Pick | None = None,
    ) -> list[dict[str, Any]]:
        """Return the chunks of several observations from one pass; as `infer`.

        Those that continue a chunk are sampled apart from those that do not, one pass for each method and
        largest weight, so that the latter stay what they are without them.

        Args:
            observations: Each an observation, or a session and the observation that comes next in it.
            noise: `[b, a, m]`, or `[b * n, a, m]` for n samples of each.
            generator: Source of the noise of all, or a sequence of one for each observation: then a chunk
                does not depend on which others share the batch, but for rounding.
            text: See `infer`.
            num_steps: See `infer`.
            continuing: What each observation continues, or None.
            samples: See `infer`; of each observation.
            pick: See `infer`.

        Raises:
            ObservationError: See `infer`; or there is no observation, or not one generator for each.
            ActionError: See `infer`. No session has noted its observation then.
            ConfigError: See `infer`; or a session occurs twice.
        """
        pairs = self._pairs(observations)
        continued = check_continuing(continuing, len(pairs))
        self._check(pairs, text)
        check_pick(pick, continued)
        samples = self._checked_samples(samples)
        if noise is not None:
            noise = check_noise(noise, "b a m", len(pairs) * samples, self.window.horizon)
        check_generators(generator, len(pairs), self.device)
        num_steps = None if num_steps is None else self._checked_steps(num_steps)
        frames = self._frames([observation for _, observation in pairs])
        seen, known = [], []
        for place, ((session, _), frame) in enumerate(zip(pairs, frames, strict=True)):
            with naming(place, len(pairs)):
                observed = frame if session is None else session._with_past(frame)
                seen.append(self._forward(observed))
                known.append(known_of(continued[place], observed, self.pipeline, self.policy, self.window))
        results: dict[int, dict[str, Any]] = {}
        parts = groups(known)
        start = split_noise(parts, known, noise, generator, samples, self.window.horizon, self.device)
        for part, (part_noise, part_generator) in zip(parts, start, strict=True):
            batch = self._batch([seen[place] for place in part])
            variant = variant_of([known[place] for place in part], samples, self.device)
            options = {"num_steps": num_steps, "samples": None if samples == 1 else samples} | variant
            chunks = self._sample(batch, part_noise, part_generator, options).cpu()
            for place, several in zip(part, chunks.unflatten(0, (len(part), samples)), strict=True):
                made = np.stack([self._inverse(chunk, seen[place]) for chunk in several])
                best = picked(pick, several, known[place], made, pairs[place][1]) if samples > 1 else 0
                results[place] = {"actions": made[best]}
            if text:
                generate = self.policy.generate_text
                for place, ids in zip(part, generate(**accepted(generate, batch)).cpu(), strict=True):
                    results[place]["text"] = self.pipeline.decode(ids)
        for (session, _), frame in zip(pairs, frames, strict=True):  # a session knows what was acted on
            if session is not None:
                session._keep(frame)
        return [results[place] for place in range(len(pairs))]

    def warm_up(self, tasks: str | Iterable[str] | None = None, **options: Any) -> WarmUp:
        """Get ready before the robot moves; see `vla.policies.warm_up.warm_up`."""
        return warm_up(self, tasks, **options)

    def _pairs(self, observations: Any) -> list[tuple[Session | None, Observation]]:
        """Return every observation with its session, if it has one."""
        if isinstance(observations, str | Mapping) or not isinstance(observations, Iterable):
            raise ObservationError(
                f"infer_batch takes a list of observations, got a {type(observations).__name__}."
            )
        pairs: list[tuple[Session | None, Observation]] = []
        for one in observations:
            if not _is_pair(one):
                pairs.append((None, one))
                continue
            if len(one) != 2 or not isinstance(one[0], Session) or one[0].robot_policy is not self:
                raise ObservationError(
                    "A pair in infer_batch is a session of this policy and its next observation, got "
                    f"({', '.join(type(entry).__name__ for entry in one)})."
                )
            pairs.append((one[0], one[1]))
        if not pairs:
            raise ObservationError("There is no observation to act on: infer_batch got none.")
        return pairs

    def _frames(self, observations: Sequence[Observation]) -> list[Sample]:
        """Return observations as samples without a past, checked."""
        frames = []
        for place, observation in enumerate(observations):
            with naming(place, len(observations)):
                frames.append(self._guard.sample(observation))
        return frames

    def _forward(self, frame: Sample, *, measured: bool = True) -> Sample:
        """Apply the pipeline; what comes of the state must be finite; one measured far off is logged."""
        sample = self.pipeline.forward(frame)
        state = sample.get("state")
        if isinstance(state, torch.Tensor) and not bool(state.isfinite().all()):
            raise ObservationError(
                f"{STATE_KEY} {frame['state'].tolist()} is so far from what the policy was trained on that "
                f"nothing finite comes of it: {state.tolist()}."
            )
        if measured:
            self._guard.warn_of_far(frame)
        return sample

    def _inverse(self, chunk: torch.Tensor, seen: Sample) -> np.ndarray:
        """Return the executable steps of a chunk in robot units, `[a, d]`."""
        states = {key: seen[key] for key in ("state", REFERENCE_STATE) if key in seen}
        actions = self.pipeline.inverse({"actions": chunk, **states})["actions"]
        return self._guard.actions(actions[self.window.first_executable :])

    def _checked_samples(self, samples: int) -> int:
        samples = as_count(samples, "samples")
        if samples > 1 and not accepted(self.policy.sample_actions, {"samples": samples}):
            raise ConfigError(f"{type(self.policy).__name__} draws one chunk, not several: samples=1.")
        return samples

    def _checked_steps(self, num_steps: int) -> int:
        if not accepted(self.policy.sample_actions, {"num_steps": num_steps}):
            raise ConfigError(f"{type(self.policy).__name__} takes no num_steps: leave it out.")
        return check_num_steps(num_steps)

    def _sample(
        self,
        batch: Mapping[str, Any],
        noise: np.ndarray | None,
        generator: Generators | None,
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        """Return chunks `[b * n, a, m]` in model space."""
        wanted = self.policy.sampling_inputs
        inputs = {name: value for name, value in batch.items() if wanted is None or name in wanted}
        check_keywords(self.policy.sample_actions, inputs, type(self.policy))
        inputs |= {name: value for name, value in options.items() if value is not None}
        start = None if noise is None else torch.from_numpy(noise).to(self.device)
        with nullcontext() if noise is None else naming(0, 1):  # of which the policy knows the width
            return self.sampler.sample_actions(**inputs, noise=start, generator=generator)

    def _batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return samples as a batch where the policy computes, with what the host reads off it before."""
        stacked, device = collate(samples), self.device  # the latter asks accelerate: once is enough
        return {name: one.to(device) for name, one in stacked.items()} | self.policy.host_inputs(stacked)

    def _check(self, pairs: Sequence[tuple[Session | None, Observation]], text: bool) -> None:
        sessions = [id(session) for session, _ in pairs if session is not None]
        if self.past and len(sessions) < len(pairs):
            raise ConfigError(
                f"This policy reads frames up to {self.past} steps before the present, so an observation "
                "alone is not enough: begin an episode with session = robot_policy.start(), then call "
                "session.infer(observation), and session.observe(observation) at the steps in between."
            )
        if len(set(sessions)) < len(sessions):
            raise ConfigError("A session occurs twice in one batch; its steps come one after the other.")
        name = type(self.policy).__name__
        if text and "text" in self.policy.leaves_out:
            raise ConfigError(f"{name} generates no text: leave out text=True.")


def _is_pair(entry: Any) -> bool:
    """Return whether an entry is meant as a session and its observation, rather than an observation."""
    return isinstance(entry, tuple) or (
        isinstance(entry, list) and any(isinstance(part, Session) for part in entry)
    )
