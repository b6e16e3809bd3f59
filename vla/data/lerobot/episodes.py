"""Where an episode is stored, in a form that both storage versions share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla.data.lerobot.fields import shown
from vla.data.lerobot.schema import DatasetInfo
from vla.errors import DatasetError


@dataclass(frozen=True)
class VideoSpan:
    """One episode's part of a video file.

    Attributes:
        path: Relative to the dataset's root.
        start: Time of the episode's first frame in the file, in seconds.
        stop: Where its part ends, in seconds; None where the file is its own, or nothing says.
        whole: Whether nothing says where in the file it is, so that the file must end with the episode.
    """

    path: str
    start: float = 0.0
    stop: float | None = None
    whole: bool = False


@dataclass(frozen=True)
class Episode:
    """One demonstration.

    Attributes:
        index: `episode_index`, unique in the dataset.
        length: Number of frames.
        tasks: The instructions of its rows; until those are read, what its entry says.
        data_path: Parquet file that holds its rows, relative to the dataset's root.
        videos: Span by camera key; cameras stored as images in parquet have none.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data_path: str
    videos: Mapping[str, VideoSpan] = field(default_factory=dict)


def check_totals(info: DatasetInfo, episodes: Sequence[Episode], source: Path) -> None:
    """Raise `DatasetError` unless the list of episodes agrees with info.json and with itself."""
    seen: set[int] = set()
    for episode in episodes:
        if episode.index in seen:
            raise DatasetError(f"{source} lists episode {episode.index} twice.")
        if episode.length <= 0 or episode.index < 0:
            raise DatasetError(
                f"{source} says that episode {episode.index} has {episode.length} frames (episode_index, "
                "length)."
            )
        seen.add(episode.index)
    frames = sum(episode.length for episode in episodes)
    if len(episodes) != info.total_episodes or frames != info.total_frames:
        raise DatasetError(
            f"meta/info.json promises {info.total_episodes} episodes and {info.total_frames} frames "
            f"(total_episodes, total_frames), but {source} lists {len(episodes)} episodes and {frames} "
            "frames (length): the dataset is incomplete, or its metadata is stale."
        )


def texts_of(value: Any) -> tuple[str, ...]:
    """Return the instructions of an entry, one or several; none where it has none."""
    if value is None:
        return ()
    return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)


def add_task(tasks: dict[int, str], index: int, value: Any, source: str) -> None:
    """Add an instruction; raises `DatasetError` where its number has another one already."""
    text = task_text(value, index, source)
    if tasks.setdefault(index, text) != text:
        raise DatasetError(
            f"{source}: task_index {index} is {shown(text)}, but {shown(tasks[index])} before: which of them "
            "its frames show is not known."
        )


def task_text(value: Any, index: Any, source: str) -> str:
    """Return an instruction, which may be empty; raises `DatasetError` where it is not a text."""
    if not isinstance(value, str):
        raise DatasetError(f"{source}: the 'task' of task_index {index} must be a text, got {shown(value)}.")
    return value
