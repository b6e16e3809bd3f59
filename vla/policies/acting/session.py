"""One episode of a robot, and the frames of the past that its policy reads."""

from collections import deque
from typing import Any

import numpy as np
import torch
from vla_client.continuation import Continuation

from vla.policies.acting.chunks import Pick
from vla.policies.observation import Observation, with_past
from vla.types import Sample


class Session:
    """One episode of a robot: the frames of the past that the policy reads, none where it reads none.

    The past is counted in control steps, and a step is one call of `infer` or `observe`. So a policy that
    reads the offsets (-1, 0) needs every control step: `observe` the frames between two chunks. If only every
    n-th is seen, the offset -1 means n steps back, other than in training, and nothing can notice it. Before
    the episode's first frame, the first frame is repeated, as in training.

    Args:
        robot_policy: The `RobotPolicy` whose chunks it returns.
    """

    def __init__(self, robot_policy: Any) -> None:
        self.robot_policy = robot_policy
        self._frames: deque[Sample] = deque(maxlen=robot_policy.past)

    @property
    def continues_by(self) -> tuple[str, ...]:
        """See `RobotPolicy`."""
        return self.robot_policy.continues_by

    @property
    def max_prefix(self) -> int:
        """See `RobotPolicy`."""
        return self.robot_policy.max_prefix

    @property
    def past(self) -> int:
        """See `RobotPolicy`."""
        return self.robot_policy.past

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
        """Note the next frame of the episode and return its chunk; as `RobotPolicy.infer`."""
        return self.robot_policy._infer_one(
            (self, observation), noise, samples, generator=generator, text=text, num_steps=num_steps,
            continuing=None if continuing is None else [continuing], pick=pick,
        )  # fmt: skip

    def observe(self, observation: Observation) -> None:
        """Note the next frame of the episode without asking for a chunk."""
        frame = self.robot_policy._guard.sample(observation)
        if self._frames.maxlen:
            self._with_past(frame)
            self._keep(frame)

    def reset(self) -> None:
        """Begin another episode: forget the frames."""
        self._frames.clear()

    def _keep(self, frame: Sample) -> None:
        self._frames.append(frame)

    def _with_past(self, frame: Sample) -> Sample:
        """Return the frame with those before it that the policy reads, as a dataset with its window does."""
        robot_policy = self.robot_policy
        return with_past(self._frames, frame, robot_policy.window, robot_policy._guard.slots)
