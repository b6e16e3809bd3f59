"""Predicted against recorded actions: how near a policy comes to demonstrations it is shown frame by frame.

Nothing is executed, so this costs no simulator and no robot; it also says nothing about how errors add up.
The yardstick is the policy that always predicts the mean action.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.errors import ConfigError, DatasetError, ShapeError
from vla.serve.chunking import BatchPolicy, past_of, session_of
from vla.types import IMAGE_PREFIX, STATE_KEY, ProgressCallback

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vla.data.dataset import LeRobotDataset


@dataclass(frozen=True)
class EpisodePrediction:
    """One episode as recorded and as predicted.

    Args:
        episode: The dataset's episode index.
        recorded: `[n, m]`, robot units.
        predicted: `[n, m]`, each frame's latest prediction; NaN where there is none.
        starts: Frames at which a chunk was predicted.
    """

    episode: int
    recorded: np.ndarray
    predicted: np.ndarray
    starts: tuple[int, ...]


@dataclass(frozen=True)
class OpenLoopResult:
    """Errors over all predicted steps inside their episodes, per action dimension, in robot units.

    Args:
        names: A name for each dimension.
        steps: Number of predicted steps that count.
        mse: Mean squared error `[m]`.
        mae: Mean absolute error `[m]`.
        mean_mse: The same of always predicting the mean action.
        mean_mae: The same of always predicting the mean action.
        episodes: What the errors were computed from, for plots.
    """

    names: tuple[str, ...]
    steps: int
    mse: np.ndarray
    mae: np.ndarray
    mean_mse: np.ndarray
    mean_mae: np.ndarray
    episodes: tuple[EpisodePrediction, ...]

    @property
    def relative(self) -> np.ndarray:
        """Squared error over that of the mean action `[m]`: 1 is as bad as the mean; NaN where that is 0."""
        varies = self.mean_mse > 0
        return np.where(varies, self.mse / np.where(varies, self.mean_mse, 1.0), np.nan)

    @property
    def relative_error(self) -> float:
        """Mean of `relative` over the dimensions that vary: each counts the same, whatever its unit.

        NaN where no dimension varies.
        """
        varying = self.relative[np.isfinite(self.relative)]
        return float(varying.mean()) if len(varying) else float("nan")

    @property
    def total_ratio(self) -> float:
        """Squared error summed over dimensions, over that of the mean action; NaN where that is 0."""
        total = float(self.mean_mse.sum())
        return float(self.mse.sum()) / total if total > 0 else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON values; what is not finite becomes None."""

        def finite(value: float) -> float | None:
            return float(value) if np.isfinite(value) else None

        columns = {key: getattr(self, key) for key in ("mse", "mae", "mean_mse", "mean_mae", "relative")}
        return {
            "steps": self.steps,
            "episodes": [one.episode for one in self.episodes],
            "relative_error": finite(self.relative_error),
            "total_ratio": finite(self.total_ratio),
            "dimensions": {
                name: {key: finite(values[index]) for key, values in columns.items()}
                for index, name in enumerate(self.names)
            },
        }

    def figures(self) -> "dict[int, Figure]":
        """Return one figure per episode: predicted against recorded, a panel for each dimension."""
        from vla.eval.figures import recorded_figure

        return {
            one.episode: recorded_figure(one.recorded, one.predicted, starts=one.starts, names=self.names)
            for one in self.episodes
        }


def open_loop(
    robot_policy: BatchPolicy,
    dataset: "LeRobotDataset",
    *,
    cameras: Mapping[str, str],
    episodes: Sequence[int] | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    generator: Any = None,
    progress: ProgressCallback | None = None,
) -> OpenLoopResult:
    """Predict a chunk at every `stride`-th frame of recorded episodes and compare.

    Steps past an episode's end do not count. The mean action is that of all frames of `dataset`. Compared is
    what can be executed of a chunk; the past that a policy reads is that of the recording.

    Args:
        robot_policy: Its window must be the dataset's.
        dataset: Recorded demonstrations.
        cameras: Camera slot of the policy to camera key of the dataset.
        episodes: Episode indices; all that the dataset has selected by default.
        stride: Frames between two predictions; by default as many as a chunk has executable steps, so that
            each frame is predicted once.
        batch_size: Chunks predicted at once.
        generator: Source of the policy's noise.
        progress: Called with (chunks done, chunks in all).

    Raises:
        DatasetError: An episode that the dataset has not selected or that has no instruction for a policy
            that needs one, or a camera that it does not decode.
        ConfigError: A stride or batch size below 1, or no episodes.
        ShapeError: The policy's chunk is not what can be executed of the dataset's, `[a, m]`.
    """
    stride = dataset.window.executable if stride is None else stride
    if stride < 1 or batch_size < 1:
        raise ConfigError(f"stride and batch_size must be at least 1, got {stride} and {batch_size}.")
    slices = _slices(dataset, episodes)
    check_cameras(dataset, cameras)
    _check_tasks(robot_policy, dataset, slices.values())
    actions = np.asarray(dataset.low_dim(dataset.action_key), dtype=np.float64)
    frames = [frame for where in slices.values() for frame in range(where.start, where.stop, stride)]
    robot_policy.reset()
    chunks: dict[int, np.ndarray] = {}
    for start in range(0, len(frames), batch_size):
        group = frames[start : start + batch_size]
        requests = [requests_at(robot_policy, dataset, frame, cameras)[0] for frame in group]
        answers = robot_policy.infer_batch(requests, generator=generator)
        chunks |= {frame: chunk_of(answer, dataset) for frame, answer in zip(group, answers, strict=True)}
        if progress is not None:
            progress(len(chunks), len(frames))
    return _compare(dataset, slices, actions, chunks)


def _compare(
    dataset: "LeRobotDataset",
    slices: Mapping[int, slice],
    actions: np.ndarray,
    chunks: Mapping[int, np.ndarray],
) -> OpenLoopResult:
    """Line up the chunks (by the frame at which they were predicted) with the recorded actions."""
    first = dataset.window.executable_start
    constant = (actions == actions[0]).all(axis=0)
    mean = np.where(constant, actions[0], actions.mean(axis=0))  # rounding must not make a constant vary
    errors, mean_errors, compared = [], [], []
    for episode, where in slices.items():
        recorded = actions[where]
        predicted = np.full_like(recorded, np.nan)
        starts = [frame for frame in range(where.start, where.stop) if frame in chunks]
        for frame in starts:
            begin = min(frame + first, where.stop)
            end = min(begin + len(chunks[frame]), where.stop)
            inside = chunks[frame][: end - begin]
            errors.append(inside - actions[begin:end])
            mean_errors.append(mean - actions[begin:end])
            predicted[begin - where.start : end - where.start] = inside
        offsets = tuple(frame - where.start for frame in starts)
        compared.append(EpisodePrediction(episode, recorded, predicted, offsets))
    error, mean_error = np.concatenate(errors), np.concatenate(mean_errors)
    names = dataset.action_feature.names
    return OpenLoopResult(
        names=tuple(names or (f"action {index}" for index in range(actions.shape[1]))),
        steps=len(error),
        mse=(error**2).mean(axis=0),
        mae=np.abs(error).mean(axis=0),
        mean_mse=(mean_error**2).mean(axis=0),
        mean_mae=np.abs(mean_error).mean(axis=0),
        episodes=tuple(compared),
    )


def _slices(dataset: "LeRobotDataset", episodes: Sequence[int] | None) -> dict[int, slice]:
    """Return each wanted episode's frames in the dataset, by episode index."""
    slices = {
        episode.index: where for episode, where in zip(dataset.episodes, dataset.episode_slices, strict=True)
    }
    wanted = list(slices) if episodes is None else list(episodes)
    if not wanted:
        raise ConfigError("Open-loop evaluation needs at least one episode, got none.")
    unknown = [index for index in wanted if index not in slices]
    if unknown:
        raise DatasetError(
            f"Episodes {unknown} are not among those that the dataset has selected: {list(slices)}."
        )
    return {index: slices[index] for index in wanted}


def _check_tasks(robot_policy: BatchPolicy, dataset: "LeRobotDataset", spans: Iterable[slice]) -> None:
    """Raise `DatasetError` where the policy acts on words, and a frame of some episodes has none."""
    from vla.data.policy_dataset import WITHOUT_INSTRUCTION
    from vla.data.selection import frames_without_task

    rows = np.concatenate([np.arange(span.start, span.stop) for span in spans])
    if getattr(robot_policy, "needs_task", False) and (without := frames_without_task(dataset, rows)):
        raise DatasetError(f"{without} {WITHOUT_INSTRUCTION}")


def check_cameras(dataset: "LeRobotDataset", cameras: Mapping[str, str]) -> None:
    """Raise `DatasetError` where the dataset does not decode a camera."""
    for slot, key in cameras.items():
        if key not in dataset.cameras:
            raise DatasetError(
                f"Camera '{slot}' should be '{key}', but the dataset has {list(dataset.cameras)}."
            )


def observation_at(dataset: "LeRobotDataset", frame: int, cameras: Mapping[str, str]) -> dict[str, Any]:
    """Return what a robot would have seen at a frame of the dataset, without a past."""
    item = dataset.without_past()[frame]
    images = {f"{IMAGE_PREFIX}{slot}": item[key].permute(1, 2, 0).numpy() for slot, key in cameras.items()}
    return {**images, STATE_KEY: item[dataset.state_key].numpy(), "task": item["task"]}


def requests_at(
    robot_policy: BatchPolicy,
    dataset: "LeRobotDataset",
    frame: int,
    cameras: Mapping[str, str],
    copies: int = 1,
) -> list[Any]:
    """Return what to ask a policy with at a frame of the dataset.

    The observation, or session and observation where the policy reads a past: that of the recording.
    """
    seen = observation_at(dataset, frame, cameras)
    past = past_of(robot_policy)
    if not past:
        return [seen] * copies
    start = next(span.start for span in dataset.episode_slices if span.start <= frame < span.stop)
    before = [observation_at(dataset, one, cameras) for one in range(max(start, frame - past), frame)]
    sessions = [session_of(robot_policy) for _ in range(copies)]
    for session in sessions:
        for one in before:
            session.observe(one)
    return [(session, seen) for session in sessions]


def chunk_of(answer: Mapping[str, Any], dataset: "LeRobotDataset") -> np.ndarray:
    """Return what can be executed of a chunk, float64 `[a, m]`, checked against the dataset's window."""
    chunk = np.asarray(answer["actions"], dtype=np.float64)
    expected = (dataset.window.executable, dataset.action_dim)
    if chunk.shape != expected:
        raise ShapeError(
            f"The policy predicts chunks of {list(chunk.shape)}, but the dataset was opened for "
            f"{list(expected)}: open it with the checkpoint's window."
        )
    return chunk
