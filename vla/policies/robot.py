"""A policy on the robot's side: observations and actions in the robot's units.

    robot_policy = vla.load("runs/mine/checkpoints/last")
    session = robot_policy.start()                      # an episode
    chunk = session.infer(observation)["actions"]       # [a, d], executable from now on

A session remembers the frames of the past that the policy reads; of a policy that reads the present alone it
remembers nothing, and `robot_policy.infer(observation)` is the same.
"""

import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vla.errors import ConfigError, ShapeError, StatisticsError, did_you_mean
from vla.objectives.noise import Generators
from vla.policies.base import Policy, check_keywords
from vla.transforms.actions import REFERENCE_STATE
from vla.transforms.base import Pipeline
from vla.transforms.batch import Collated, collate
from vla.transforms.cameras import camera_slots
from vla.transforms.interface import RobotInterface
from vla.transforms.named_pipelines import check_choice
from vla.transforms.task import DefaultTask
from vla.types import IMAGE_PREFIX, STATE_KEY, Sample

TASK_KEY = "task"

Observation = Mapping[str, Any]
"""What a robot measures; see `RobotPolicy.infer`."""


def choose_pipeline(policy: Policy, name: str | None) -> Policy:
    """Make one robot's pipeline the policy's own, where it was trained on several robots at once.

    Args:
        policy: Afterwards, and in the folder that it is saved to, it is a policy of that robot alone.
        name: Name of the pipeline; None for a policy of one robot.

    Raises:
        ConfigError: The policy has no such pipeline, or has several and none was named.
    """
    policy.pipeline = pipeline_of(policy, name)
    return policy


def pipeline_of(policy: Policy, name: str | None) -> Pipeline | None:
    """Return one robot's pipeline; None until fitted to a dataset.

    Raises:
        ConfigError: See `choose_pipeline`.
    """
    check_choice(policy.pipeline_names, name)
    return policy.pipelines.get(name)


class RobotPolicy:
    """Weights and pipeline together; `infer` takes what the robot measures and returns what it should do.

    Args:
        policy: With its pipeline. It is put in evaluation mode.
        pipeline: Which robot of a policy that has the pipelines of several: its name.

    Attributes:
        window: Which frames the policy reads and predicts, in control steps: those of the dataset that it
            learned from, at its frequency.

    Raises:
        StatisticsError: The policy has no pipeline.
        ConfigError: It has those of several robots, and `pipeline` names none of them.
    """

    def __init__(self, policy: Policy, pipeline: str | None = None) -> None:
        chosen = pipeline_of(policy, pipeline)
        if chosen is None:
            raise StatisticsError(
                "This checkpoint carries no pipeline and no normalisation statistics, so it cannot act. "
                "Fine-tune it on your robot's dataset first: vla train RECIPE policy.pretrained=<checkpoint>."
            )
        self.policy = policy.eval()
        self.pipeline = chosen
        self.window = policy.config.window
        self._slots = camera_slots(self.pipeline)
        self._needs_task = policy.reads_text and self.pipeline.find(DefaultTask) is None

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
    def device(self) -> torch.device:
        """Where the policy's tensors belong: where its weights lie, or whereto `accelerate` takes them."""
        place = getattr(getattr(self.policy, "_hf_hook", None), "execution_device", None)
        return self.policy.device if place is None else torch.device(place)

    def start(self) -> "Session":
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
    ) -> dict[str, Any]:
        """Return the chunk for one observation, of a policy that reads the present alone.

        Args:
            observation: `"observation.images.<camera>"` uint8 `[h, w, 3]` each (absent cameras left out),
                `"observation.state"` `[d]` in robot units, `"task"` the instruction (may be left out
                where the robot's description has one, or the policy reads no text).
            noise: `[a, m]` in model space, where sampling starts; drawn where not given.
            generator: Source of the noise.
            text: Whether to generate the response text as well.
            num_steps: Steps of sampling; the policy's own number where not given.

        Returns:
            `"actions"` float32 `[a, d]` in robot units, the steps of the chunk that can be executed from now
            on (without those before the window's `first_executable`), and `"text"` where asked for.

        Raises:
            ShapeError: A camera or the state does not fit the checkpoint.
            ConfigError: The policy reads frames of the past, generates no text, or has no `num_steps`.
        """
        batched = None if noise is None else noise[None]
        return self.infer_batch(
            [observation], noise=batched, generator=generator, text=text, num_steps=num_steps
        )[0]

    @torch.no_grad()
    def infer_batch(
        self,
        observations: "Sequence[Observation | tuple[Session, Observation]]",
        *,
        noise: np.ndarray | None = None,
        generator: Generators | None = None,
        text: bool = False,
        num_steps: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return the chunks of several observations from one pass; as `infer`.

        Args:
            observations: Each an observation, or a session and the observation that comes next in it.
            noise: `[b, a, m]`.
            generator: Source of the noise of all, or a sequence of one for each observation: then a chunk
                does not depend on which others share the batch, but for rounding.
            text: See `infer`.
            num_steps: See `infer`.

        Raises:
            ShapeError: See `infer`; or there are not as many generators as observations.
            ConfigError: See `infer`; or a session occurs twice.
        """
        pairs = [one if isinstance(one, tuple) else (None, one) for one in observations]
        self._check(pairs, generator, text, num_steps)
        frames = [self._frame(observation) for _, observation in pairs]
        samples = [
            self.pipeline.forward(frame if session is None else session._with_past(frame))
            for (session, _), frame in zip(pairs, frames, strict=True)
        ]
        for (session, _), frame in zip(pairs, frames, strict=True):
            if session is not None:
                session._keep(frame)
        batch = collate(samples).to(self.device)
        chunks = self._sample(batch, noise, generator, num_steps)
        results: list[dict[str, Any]] = []
        for sample, chunk in zip(samples, chunks.cpu(), strict=True):
            seen = {key: sample[key] for key in ("state", REFERENCE_STATE) if key in sample}
            actions = self.pipeline.inverse({"actions": chunk, **seen})["actions"]
            executable = actions[self.window.first_executable :]
            results.append({"actions": executable.numpy().astype(np.float32)})
        if text:
            generate = self.policy.generate_text
            for result, ids in zip(results, generate(**_accepted(generate, batch)).cpu(), strict=True):
                result["text"] = self.pipeline.decode(ids)
        return results

    def _sample(
        self, batch: Collated, noise: np.ndarray | None, generator: Generators | None, num_steps: int | None
    ) -> torch.Tensor:
        """Return chunks `[b, a, m]` in model space."""
        wanted = self.policy.sampling_inputs
        inputs: dict[str, Any] = {
            name: tensor for name, tensor in batch.items() if wanted is None or name in wanted
        }
        check_keywords(self.policy.sample_actions, inputs, type(self.policy))
        if num_steps is not None:
            inputs["num_steps"] = num_steps
        start = None
        if noise is not None:
            start = torch.as_tensor(noise, dtype=torch.float32, device=self.device)
        return self.policy.sample_actions(**inputs, noise=start, generator=generator)

    def _check(
        self,
        pairs: "Sequence[tuple[Session | None, Observation]]",
        generator: Generators | None,
        text: bool,
        num_steps: int | None,
    ) -> None:
        sessions = [id(session) for session, _ in pairs if session is not None]
        if self.past and len(sessions) < len(pairs):
            raise ConfigError(
                f"This policy reads frames up to {self.past} steps before the present, so an observation "
                "alone is not enough: begin an episode with session = robot_policy.start(), then call "
                "session.infer(observation), and session.observe(observation) at the steps in between."
            )
        if len(set(sessions)) < len(sessions):
            raise ConfigError("A session occurs twice in one batch; its steps come one after the other.")
        if not (generator is None or isinstance(generator, torch.Generator)) and len(generator) != len(pairs):
            raise ShapeError(
                f"Got {len(generator)} generators for {len(pairs)} observations; give one, or one each."
            )
        name = type(self.policy).__name__
        if text and "text" in self.policy.leaves_out:
            raise ConfigError(f"{name} generates no text: leave out text=True.")
        if num_steps is not None and not _accepted(self.policy.sample_actions, {"num_steps": num_steps}):
            raise ConfigError(f"{name} takes no num_steps: leave it out.")

    def _frame(self, observation: Observation) -> Sample:
        """Turn a robot's observation into the sample that the pipeline starts from, without a past."""
        needed = (STATE_KEY, TASK_KEY) if self._needs_task else (STATE_KEY,)
        if missing := [key for key in needed if key not in observation]:
            raise ShapeError(f"The observation lacks {' and '.join(missing)}; it has {sorted(observation)}.")
        images = {}
        for key, value in observation.items():
            if not key.startswith(IMAGE_PREFIX) or not self._slots:  # a blind policy ignores what is seen
                continue
            camera = key.removeprefix(IMAGE_PREFIX)
            if camera not in self._slots:
                hint = did_you_mean(camera, self._slots)
                raise ShapeError(f"The checkpoint has no camera '{camera}', only {list(self._slots)}.{hint}")
            image = np.asarray(value)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ShapeError(f"{key} must be uint8 [h, w, 3], got {image.dtype} {list(image.shape)}.")
            images[camera] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        state = torch.from_numpy(np.array(observation[STATE_KEY], dtype=np.float32))
        return {"images": images, "state": state, "task": str(observation.get(TASK_KEY, ""))}


class Session:
    """One episode of a robot: the frames of the past that the policy reads, none where it reads none.

    The past is counted in control steps, and a step is one call of `infer` or `observe`. So a policy that
    reads the offsets (-1, 0) needs every control step: `observe` the frames between two chunks. If only every
    n-th is seen, the offset -1 means n steps back, other than in training, and nothing can notice it. Before
    the episode's first frame, the first frame is repeated, as in training.

    Args:
        robot_policy: Whose chunks it returns.
    """

    def __init__(self, robot_policy: RobotPolicy) -> None:
        self.robot_policy = robot_policy
        self._frames: deque[Sample] = deque(maxlen=robot_policy.past)

    def infer(
        self,
        observation: Observation,
        *,
        noise: np.ndarray | None = None,
        generator: torch.Generator | None = None,
        text: bool = False,
        num_steps: int | None = None,
    ) -> dict[str, Any]:
        """Note the next frame of the episode and return its chunk; as `RobotPolicy.infer`."""
        batched = None if noise is None else noise[None]
        return self.robot_policy.infer_batch(
            [(self, observation)], noise=batched, generator=generator, text=text, num_steps=num_steps
        )[0]

    def observe(self, observation: Observation) -> None:
        """Note the next frame of the episode without asking for a chunk."""
        if self._frames.maxlen:
            frame = self.robot_policy._frame(observation)
            self._with_past(frame)
            self._keep(frame)

    def reset(self) -> None:
        """Begin another episode: forget the frames."""
        self._frames.clear()

    def _keep(self, frame: Sample) -> None:
        self._frames.append(frame)

    def _with_past(self, frame: Sample) -> Sample:
        """Return the frame with those before it that the policy reads, as a dataset with its window does."""
        window, slots = self.robot_policy.window, self.robot_policy._slots
        sample = dict(frame)
        if len(window.state) > 1:
            sample["state"], sample["observation_is_pad"] = self._stacked(
                frame, window.state, lambda one: one["state"], STATE_KEY
            )
        pads = {}
        for camera in frame["images"]:
            offsets = window.of_camera(slots[camera])
            if len(offsets) > 1:
                stacked, pads[camera] = self._stacked(
                    frame, offsets, lambda one, camera=camera: one["images"].get(camera), f"camera '{camera}'"
                )
                sample["images"] = {**sample["images"], camera: stacked}
        return sample | {"image_is_pad": pads} if pads else sample

    def _stacked(
        self,
        present: Sample,
        offsets: Sequence[int],
        read: Callable[[Sample], torch.Tensor | None],
        what: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one entry of the frames at some offsets, `[o, ...]`, and which lie before the episode."""
        frames = [*self._frames, present]
        places = [len(frames) - 1 + offset for offset in offsets]
        entries = [read(frames[max(0, place)]) for place in places]
        shape = None if entries[-1] is None else entries[-1].shape
        tensors = [entry for entry in entries if entry is not None and entry.shape == shape]
        if len(tensors) < len(entries):
            before = [None if entry is None else list(entry.shape) for entry in entries[:-1]]
            raise ShapeError(
                f"{what} must be alike in all frames that the policy reads: now {list(shape or ())}, before "
                f"{before} (None: not there). After a change of the robot, begin another episode."
            )
        return torch.stack(tensors), torch.tensor([place < 0 for place in places])


def _accepted(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values that a function takes by keyword."""
    parameters = inspect.signature(function).parameters
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    return {name: value for name, value in values.items() if takes_all or name in parameters}
