"""Several draws of one chunk against what was recorded: how a policy's predictions look while it learns.

The open-loop error is one number; here it can be seen whether the draws follow the demonstration, split over
two ways of doing it, tremble, or stand still.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from vla.errors import ConfigError, ShapeError
from vla.eval.figures import INK, PREDICTED_COLOUR, dimension_panels, legend_above
from vla.eval.open_loop import check_cameras, chunk_of, requests_at
from vla.serve.chunking import BatchPolicy

if TYPE_CHECKING:
    from vla.data.dataset import LeRobotDataset


@dataclass(frozen=True)
class ChunkSample:
    """One frame's recorded chunk and draws of the predicted one, in robot units.

    Attributes:
        episode: The dataset's episode index.
        frame: Frame in the episode at which the chunks are predicted.
        names: A name for each dimension.
        recorded: `[n, m]`, the steps that lie inside the episode.
        draws: `[k, a, m]`, what can be executed of them.
    """

    episode: int
    frame: int
    names: tuple[str, ...]
    recorded: np.ndarray
    draws: np.ndarray


def sample_chunks(
    robot_policy: BatchPolicy,
    dataset: "LeRobotDataset",
    *,
    cameras: Mapping[str, str],
    episodes: Sequence[int],
    draws: int,
    generator: Any = None,
) -> list[ChunkSample]:
    """Draw chunks at the middle of episodes: one frame of each, which leaves room for a whole chunk.

    Args:
        robot_policy: Its window must be the dataset's.
        dataset: Recorded demonstrations.
        cameras: Camera slot of the policy to camera key of the dataset.
        episodes: Positions among the dataset's episodes.
        draws: Chunks of each frame, from one pass.
        generator: Source of the policy's noise.

    Raises:
        ConfigError: Fewer than one draw.
        DatasetError: A camera that the dataset does not decode.
        ShapeError: The policy's chunk is not what can be executed of the dataset's, `[a, m]`.
    """
    if draws < 1:
        raise ConfigError(f"draws must be at least 1, got {draws}.")
    check_cameras(dataset, cameras)
    recorded = np.asarray(dataset.low_dim(dataset.action_key), dtype=np.float64)
    names = dataset.action_feature.names
    labels = tuple(names or (f"action {index}" for index in range(dataset.action_dim)))
    samples = []
    for position in episodes:
        span = dataset.episode_slices[position]
        steps = dataset.window.executable
        row = span.start + max(0, span.stop - span.start - steps) // 2
        begin = row + dataset.window.executable_start
        requests = requests_at(robot_policy, dataset, row, cameras, copies=draws)
        answers = robot_policy.infer_batch(requests, generator=generator)
        samples.append(
            ChunkSample(
                episode=dataset.episodes[position].index,
                frame=row - span.start,
                names=labels,
                recorded=recorded[begin : min(begin + steps, span.stop)],
                draws=np.stack([chunk_of(answer, dataset) for answer in answers]),
            )
        )
    return samples


def chunk_figure(sample: ChunkSample) -> Figure:
    """Draw a panel for each dimension: the recorded chunk, and every draw of the predicted one.

    Raises:
        ShapeError: Recorded and predicted chunks do not fit each other.
    """
    recorded, draws = sample.recorded, sample.draws
    if draws.ndim != 3 or recorded.ndim != 2 or draws.shape[2] != recorded.shape[1]:
        raise ShapeError(
            f"A chunk sample has recorded [n, m] and draws [k, a, m]; got {list(recorded.shape)} and "
            f"{list(draws.shape)}."
        )
    dims = recorded.shape[1]
    figure, panels, _ = dimension_panels(dims)
    for dim, ax in enumerate(panels):
        for number, draw in enumerate(draws):
            label: dict[str, Any] = {"label": f"{len(draws)} draws"} if number == 0 else {}
            ax.plot(draw[:, dim], color=PREDICTED_COLOUR, linewidth=1.1, alpha=0.55, **label)
        ax.plot(recorded[:, dim], color=INK, linewidth=1.7, label="recorded")
        ax.set_ylabel(sample.names[dim], fontsize=8.5, color=INK)
    figure.supxlabel(f"step of the chunk from frame {sample.frame} of episode {sample.episode}", fontsize=9)
    legend_above(figure, panels[0])
    return figure
