"""Recorded actions in the simulator that they were recorded in: how many episodes still succeed."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla.data.dataset import LeRobotDataset
from vla.errors import DatasetError
from vla.eval.episode import Start
from vla.eval.outcome import success_interval
from vla.eval.playing import executed_columns
from vla.eval.recording import OPTIONS, SEED, scene_of
from vla.eval.scene import Scene
from vla.eval.stages import Here, Workers
from vla.types import STATE_KEY, ProgressCallback

IMAGE_STRIDE = 10
"""Every how many frames images are compared."""


@dataclass(frozen=True)
class Replayed:
    """One episode, replayed.

    Attributes:
        episode: Its index in the dataset.
        seed: The environment's.
        success: Whether the task was done.
        state: Largest difference of a state from the recorded one, robot units.
        image: Mean difference of the images from the recorded ones, 0 to 255: encoding as video costs some.
        ended_early: Whether the environment ended the episode before the last recorded action.
    """

    episode: int
    seed: int
    success: bool
    state: float
    image: float
    ended_early: bool


@dataclass(frozen=True)
class Replay:
    """All of them."""

    scene: Scene
    episodes: Sequence[Replayed]

    @property
    def successes(self) -> int:
        """Episodes that still succeed."""
        return sum(one.success for one in self.episodes)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share that succeeds."""
        return success_interval(self.successes, len(self.episodes))

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "env": self.scene.env,
            "arguments": dict(self.scene.arguments),
            "episodes": len(self.episodes),
            "successes": self.successes,
            "success_interval": list(self.interval),
            "largest_state_difference": max(one.state for one in self.episodes),
            "mean_image_difference": float(np.mean([one.image for one in self.episodes])),
            "failed": [one.episode for one in self.episodes if not one.success],
        }


def replay(
    folder: Path,
    episodes: Sequence[int] | None = None,
    workers: int = 0,
    progress: ProgressCallback | None = None,
) -> Replay:
    """Replay the actions of a recording of `vla.eval.recording.record`.

    Args:
        folder: The dataset.
        episodes: Which; None: all.
        workers: Processes that simulate; 0: this one.
        progress: Called with (episodes done, episodes in all).

    Raises:
        DatasetError: The dataset does not say where it was recorded, or is damaged.
        ConfigError: The environment cannot be made.
    """
    scene = scene_of(folder)
    data = LeRobotDataset(folder, action_horizon=1, episodes=None if episodes is None else list(episodes))
    numbers, places = range(len(data.episodes)), max(1, workers)
    done: list[Replayed] = []
    with closing(Workers(scene.make, places, workers) if workers else Here(scene.make, places)) as stage:
        for first in range(0, len(numbers), places):
            recorded = {
                one: _recorded(data, number) for one, number in enumerate(numbers[first : first + places])
            }
            seen = stage.begin({place: Start(one.seed, one.options) for place, one in recorded.items()})
            answers = stage.follow({place: list(recorded[place].actions) for place in seen})
            for place, one in recorded.items():
                observed = [seen[place], *answers[place][0]] if place in seen else []
                done.append(_compared(data, first + place, one, observed, stage.course(place).success))
            if progress is not None:
                progress(len(done), len(numbers))
    data.close()
    return Replay(scene, done)


@dataclass(frozen=True)
class _Recorded:
    seed: int
    options: dict[str, Any]
    actions: np.ndarray
    rows: slice


def _recorded(data: LeRobotDataset, place: int) -> _Recorded:
    """Return what a recording says of one of its selected episodes."""
    rows = data.episode_slices[place]
    try:
        seeds = np.asarray(data.low_dim(SEED))[rows]
        options = data.texts(OPTIONS)[int(data.text_numbers(OPTIONS)[rows.start])]
    except DatasetError as error:
        raise DatasetError(
            f"{data.name} does not say the seeds of its episodes, so that they cannot be begun again: only "
            f"recordings of `vla record` can be replayed. {error}"
        ) from error
    columns = executed_columns(data.action_feature.names or ())
    if columns and columns[0] in data.info.features:  # it was disturbed
        actions = np.stack([np.asarray(data.low_dim(column))[rows] for column in columns], axis=1)
    else:
        actions = np.array(data.low_dim(data.action_key)[rows])
    return _Recorded(int(seeds[0]), json.loads(options), actions, rows)


def _compared(
    data: LeRobotDataset, place: int, recorded: _Recorded, observed: Sequence[Any], success: bool
) -> Replayed:
    """Compare what was observed with what was recorded, as far as the episode came."""
    rows = recorded.rows
    count = min(len(observed), len(recorded.actions))
    states = np.array(data.low_dim(data.state_key)[rows])
    state = max((float(np.abs(observed[i][STATE_KEY] - states[i]).max()) for i in range(count)), default=0.0)
    seen = [i for i in range(count) if i % IMAGE_STRIDE == 0]
    images = [
        np.abs(observed[i][camera].astype(np.float32) - item[camera].permute(1, 2, 0).numpy()).mean()
        for i in seen
        for item in [data[rows.start + i]]
        for camera in data.cameras
    ]
    return Replayed(
        data.episodes[place].index,
        recorded.seed,
        success,
        state,
        float(np.mean(images)) if images else 0.0,
        len(observed) <= len(recorded.actions),
    )
