"""How long the samples' texts are, so that those of like length share a step (`data.bucket_by_length`)."""

import numpy as np
import torch

from vla.data.dataset import LeRobotDataset
from vla.data.loading.order import ByLength, Epochs
from vla.train.recipe import TrainSection
from vla.transforms.base import Pipeline


def by_length(epochs: Epochs, lengths: np.ndarray, train: TrainSection, processes: int) -> ByLength:
    """Return the epochs rearranged by the samples' lengths `[n]`, for the steps of a recipe."""
    together = train.accumulation * processes
    return ByLength(epochs, lengths, train.batch_size, train.seed, batches_per_step=together)


def text_lengths(pipeline: Pipeline, dataset: LeRobotDataset, response_key: str | None = None) -> np.ndarray:
    """Return how many text tokens each frame has, long `[n]`, from its texts alone.

    Each different pair of instruction and response is tokenized once. Where the prompt holds the state, it is
    counted as zeros, three digits a dimension: frames of one instruction differ by a few digits at most, and
    have the same length here.

    Args:
        pipeline: The policy's; how it writes prompts decides.
        dataset: Its texts and their places are read, nothing else.
        response_key: Column of the responses; None where no text is trained.

    Raises:
        DatasetError: There is no such column.
    """
    pairs = np.zeros((len(dataset), 2), dtype=np.int64)
    pairs[:, 0] = dataset.low_dim("task_index")
    responses = ("",)
    if response_key is not None:
        responses, pairs[:, 1] = dataset.texts(response_key), dataset.text_numbers(response_key)
    different, place = np.unique(pairs, axis=0, return_inverse=True)
    state = torch.zeros(dataset.state_dim)
    lengths = [
        pipeline.text_length(
            {"task": dataset.info.tasks[task], "response": responses[response], "state": state}
        )
        for task, response in different.tolist()
    ]
    return np.array(lengths)[place.reshape(-1)]


def warn_of_long_prompts(pipeline: Pipeline, dataset: LeRobotDataset) -> None:
    """Let the prompts that are too long be warned of here, once instead of in every worker."""
    for task in dataset.tasks:
        pipeline.text_length({"task": task, "state": torch.zeros(dataset.state_dim)})
