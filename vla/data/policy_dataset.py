"""A dataset's items as a policy's tensors, for any loader of PyTorch or `transformers`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from vla.data.dataset import LeRobotDataset
from vla.data.sample import to_canonical
from vla.data.selection import frames_without_task, with_own_arguments
from vla.errors import ConfigError, DatasetError, did_you_mean
from vla.transforms.base import Pipeline
from vla.transforms.cameras import camera_slots
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.task import DefaultTask
from vla.types import IMAGE_PREFIX, as_flag

WITHOUT_INSTRUCTION = (
    "The policy acts on its words, and refuses an empty instruction: leave these episodes out "
    "(data.episodes in a recipe, episodes=[...] here), write their tasks into the dataset, or name one that "
    "stands for what is empty (default_prompt in a robot file)."
)


class PolicyDataset(Dataset[dict[str, torch.Tensor]]):
    """Map-style: item `i` holds the tensors that a policy's `forward` takes, of a frame and its action chunk.

    All items are alike, so that the default collation of a `DataLoader` or a `Trainer` stacks them.

    Args:
        dataset: With the policy's window: `LeRobotDataset(..., window=policy.config.window)`; or a
            `torch.utils.data.Subset` of one.
        pipeline: The policy's (`policy.pipeline`), with the statistics of the robot.
        cameras: Camera slot of the policy to camera key of the dataset; by default the slots and cameras
            that the pipeline names and the dataset has under `observation.images.<name>`.
        response_key: A text column to be predicted; none by default.
        augment: Crop, rotate and recolour images as the pipeline does in training, by torch's global
            generator (which a `DataLoader` seeds in each worker).

    Raises:
        ConfigError: There is no pipeline, it reads images and the dataset has none of its cameras, or an
            argument is something else.
        DatasetError: The policy reads instructions, and a frame has an empty one.
    """

    @with_own_arguments
    def __init__(
        self,
        dataset: LeRobotDataset | Subset[Any],
        pipeline: Pipeline | None,
        *,
        cameras: Mapping[str, str] | None = None,
        response_key: str | None = None,
        augment: bool = False,
    ) -> None:
        if pipeline is None:
            raise ConfigError(
                "The policy has no pipeline, which turns a dataset's items into its tensors: open one that "
                "was trained (`vla train`), or make one with `make_pipeline` of the policy's package."
            )
        if not callable(getattr(pipeline, "forward", None)):
            raise ConfigError(
                f"pipeline must be a policy's Pipeline, policy.pipeline, got a {type(pipeline).__name__}."
            )
        self._source: Any = dataset
        while isinstance(self._source, Subset):
            self._source = self._source.dataset
        if not isinstance(self._source, LeRobotDataset):
            raise ConfigError(
                "dataset must be a LeRobotDataset, a table of datasets opened as one, or a Subset of either, "
                f"got a {type(self._source).__name__}."
            )
        self.dataset, self.pipeline, self.response_key, self.augment = (
            dataset,
            pipeline,
            response_key,
            as_flag(augment, "augment"),
        )
        check_instructions(self._source, pipeline, _rows(dataset))
        self.cameras = (
            _cameras_of(pipeline, self._source)
            if cameras is None
            else _checked(cameras, pipeline, self._source)
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        source = self._source
        sample = to_canonical(
            self.dataset[index], self.cameras, source.state_key, source.action_key, self.response_key
        )
        generator = None
        if self.augment:
            generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        tensors = self.pipeline.forward(sample, generator)
        return {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def check_instructions(dataset: LeRobotDataset, pipeline: Pipeline, rows: np.ndarray | None = None) -> None:
    """Raise `DatasetError` where a policy that reads instructions would be trained on empty ones.

    Such a policy refuses to act on an empty one.

    Args:
        dataset: The dataset.
        pipeline: The policy's; a robot's default prompt takes the place of what is empty.
        rows: The frames that are used, all by default.
    """
    if pipeline.find(TokenizePrompt) is None or pipeline.find(DefaultTask) is not None:
        return
    if without := frames_without_task(dataset, rows):
        raise DatasetError(f"{without} {WITHOUT_INSTRUCTION}")


def _rows(dataset: LeRobotDataset | Subset[Any]) -> np.ndarray:
    """Return the frames of the dataset itself that a subset of it shows."""
    if not isinstance(dataset, Subset):
        return np.arange(len(dataset))
    inner = _rows(dataset.dataset)  # pyright: ignore[reportArgumentType] (checked before)
    return inner[[int(index) for index in dataset.indices if -len(inner) <= int(index) < len(inner)]]


def _checked(cameras: Any, pipeline: Pipeline, dataset: LeRobotDataset) -> dict[str, str]:
    """Return the cameras that a user names, each a slot of the policy and a camera of the dataset."""
    slots = camera_slots(pipeline)
    if not isinstance(cameras, Mapping) or (slots and not cameras):
        raise ConfigError(
            f"cameras maps slots of the policy, {list(slots)}, to cameras of the dataset, "
            f"{list(dataset.cameras)}; got {cameras!r}."
        )
    for slot, key in cameras.items():
        for what, one, known in (
            ("slot of the policy", slot, slots),
            ("camera of the dataset", key, dataset.cameras),
        ):
            if not isinstance(one, str) or one not in known:
                raise ConfigError(
                    f"cameras={dict(cameras)!r}: {one!r} is not a {what}; there are {list(known)}."
                    f"{did_you_mean(str(one), known)}"
                )
    return dict(cameras)


def _cameras_of(pipeline: Pipeline, dataset: LeRobotDataset) -> dict[str, str]:
    slots = camera_slots(pipeline)
    found = {
        slot: IMAGE_PREFIX + name for name, slot in slots.items() if IMAGE_PREFIX + name in dataset.cameras
    }
    if slots and not found:
        raise ConfigError(
            f"The dataset has none of the policy's cameras: it has {list(dataset.cameras)}, the policy reads "
            f"{list(slots)}. Say which is which: cameras={{'{next(iter(slots))}': ...}}."
        )
    return found
