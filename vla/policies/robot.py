"""A policy as a robot meets it: observations and actions in the robot's own units."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vla.errors import ShapeError, StatisticsError, did_you_mean
from vla.policies.base import Policy
from vla.transforms.actions import REFERENCE_STATE, PadDimensions
from vla.transforms.base import Pipeline
from vla.transforms.cameras import camera_names
from vla.transforms.named_pipelines import check_choice
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.task import DefaultTask
from vla.types import Sample

IMAGE_PREFIX = "observation.images."
STATE_KEY = "observation.state"
TASK_KEY = "task"


def choose_pipeline(policy: Policy, name: str | None) -> Policy:
    """Make one robot's pipeline the policy's own, where it was trained on several robots at once.

    Args:
        policy: Afterwards, and in the folder that it is saved to, it is a policy of that robot alone.
        name: Of the pipeline; None for a policy of one robot.

    Raises:
        ConfigError: The policy has no such pipeline, or has several and none was named.
    """
    policy.pipeline = pipeline_of(policy, name)
    return policy


def pipeline_of(policy: Policy, name: str | None) -> Pipeline | None:
    """Return one robot's pipeline; None where the policy has met no robot.

    Raises:
        ConfigError: As `choose_pipeline`.
    """
    check_choice(policy.pipeline_names, name)
    return policy.pipelines.get(name)


class RobotPolicy:
    """Weights and pipeline together; `infer` takes what the robot measures and returns what it should do.

    Args:
        policy: With its pipeline. It is put in evaluation mode.
        pipeline: Which robot of a policy that has the pipelines of several: its name.

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
        self._cameras = camera_names(self.pipeline)
        self._action_dim = self.pipeline.find(PadDimensions).action_dim

    def reset(self) -> None:
        """Forget the episode; this policy remembers nothing between calls."""

    def infer(
        self,
        observation: Mapping[str, Any],
        *,
        noise: np.ndarray | None = None,
        generator: torch.Generator | None = None,
        text: bool = False,
    ) -> dict[str, Any]:
        """Return the chunk for one observation.

        Args:
            observation: `"observation.images.<camera>"` uint8 `[h, w, 3]` each (absent cameras left out),
                `"observation.state"` `[d]` in robot units, `"task"` the instruction (may be left out
                where the robot's description has one).
            noise: `[a, m]` in model space, where the flow starts; drawn where not given.
            generator: Source of the noise.
            text: Whether to generate the response text as well.

        Returns:
            `"actions"` float32 `[a, d]` in robot units, and `"text"` where asked for.

        Raises:
            ShapeError: A camera or the state does not fit the checkpoint.
        """
        batched = None if noise is None else noise[None]
        return self.infer_batch([observation], noise=batched, generator=generator, text=text)[0]

    @torch.no_grad()
    def infer_batch(
        self,
        observations: Sequence[Mapping[str, Any]],
        *,
        noise: np.ndarray | None = None,
        generator: torch.Generator | None = None,
        text: bool = False,
    ) -> list[dict[str, Any]]:
        """Return the chunks of several observations from one pass; as `infer`, with noise `[b, a, m]`."""
        samples = [self.pipeline.forward(self._canonical(observation)) for observation in observations]
        device = self.policy.device
        batch = {
            key: torch.stack([sample[key] for sample in samples]).to(device)
            for key in ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "state")
        }
        start = None if noise is None else torch.as_tensor(noise, dtype=torch.float32, device=device)
        is_pad = samples[0]["action_dim_is_pad"].to(device)
        chunks = self.policy.sample_actions(
            **batch, noise=start, generator=generator, action_dim_is_pad=is_pad
        ).cpu()
        results: list[dict[str, Any]] = []
        for sample, chunk in zip(samples, chunks, strict=True):
            seen = {key: sample[key] for key in ("state", REFERENCE_STATE) if key in sample}
            out = self.pipeline.inverse({"actions": chunk, **seen})
            results.append({"actions": out["actions"].numpy().astype(np.float32)})
        if text:
            for result, words in zip(results, self._texts(batch), strict=True):
                result["text"] = words
        return results

    def _texts(self, batch: dict[str, torch.Tensor]) -> list[str]:
        prompt = {key: value for key, value in batch.items() if key != "state"}
        tokenizer = self.pipeline.find(TokenizePrompt)
        return [tokenizer.decode(ids) for ids in self.policy.generate_text(**prompt).cpu()]

    def _canonical(self, observation: Mapping[str, Any]) -> Sample:
        """Turn a robot's observation into the sample that the pipeline starts from."""
        needed = (STATE_KEY,) if self.pipeline.find(DefaultTask) is not None else (STATE_KEY, TASK_KEY)
        if missing := [key for key in needed if key not in observation]:
            raise ShapeError(f"The observation lacks {' and '.join(missing)}; it has {sorted(observation)}.")
        images = {}
        for key, value in observation.items():
            if not key.startswith(IMAGE_PREFIX):
                continue
            camera = key.removeprefix(IMAGE_PREFIX)
            if camera not in self._cameras:
                hint = did_you_mean(camera, self._cameras)
                raise ShapeError(
                    f"The checkpoint has no camera '{camera}', only {list(self._cameras)}.{hint}"
                )
            image = np.asarray(value)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ShapeError(f"{key} must be uint8 [h, w, 3], got {image.dtype} {list(image.shape)}.")
            images[camera] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        state = torch.from_numpy(np.array(observation[STATE_KEY], dtype=np.float32))
        return {"images": images, "state": state, "task": str(observation.get(TASK_KEY, ""))}
