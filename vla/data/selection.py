"""What of a dataset is used: episodes, cameras, frames around the present one, and a frame by its number."""

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from vla.data.lerobot.columns import Columns
from vla.data.lerobot.episodes import Episode
from vla.data.lerobot.fields import NAMED_DEPTH
from vla.data.lerobot.schema import DatasetInfo, Feature
from vla.data.notices import say_once, say_once_of
from vla.errors import ConfigError, DatasetError, did_you_mean
from vla.types import TASK_KEY, Window, as_count, as_counts, as_texts

_INSTEAD = {
    "root": "the folder is the first argument, LeRobotDataset(FOLDER, ...)",
    **dict.fromkeys(("repo_id", "path", "dataset"), "folder or hub id is the first argument, without a name"),
    **dict.fromkeys(
        ("delta_timestamps", "delta_indices"),
        "action_horizon= says how many steps a chunk has, window=vla.types.Window(...) which frames are read",
    ),
    **dict.fromkeys(("horizon", "chunk_size", "n_action_steps"), "give action_horizon="),
    **dict.fromkeys(
        ("split", "subset", "columns", "fps"),
        "of a table of `datasets` it is said by options=TableOptions(...), and of a LeRobot dataset "
        "episodes= chooses",
    ),
    "image_transforms": "a policy's pipeline changes images, vla.data.PolicyDataset(..., augment=True)",
    "video_backend": "PyAV decodes all videos: leave it out",
    "download_videos": "what is used is downloaded, and cameras=[] uses no video",
    "force_cache_sync": "what is missing is downloaded: leave it out",
    "streaming": "LeRobot datasets alone can be streamed: leave it out",
    "token": "log in with `hf auth login`, or set HF_TOKEN",
    "cache_dir": "set HF_HOME in the environment",
}
"""What to give in place of keywords of LeRobot's and Hugging Face's datasets."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def with_own_arguments(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return a method that refuses arguments that it does not have by `ConfigError`, with what to give."""
    takes, name = inspect.signature(method), method.__qualname__.removesuffix(".__init__")

    @functools.wraps(method)
    def checked(*args: _P.args, **given: _P.kwargs) -> _T:
        for keyword in given.keys() - takes.parameters.keys():
            hint = did_you_mean(keyword, takes.parameters)
            hint = f": {_INSTEAD[keyword]}." if keyword in _INSTEAD else f".{hint}"
            raise ConfigError(f"{name} has no keyword '{keyword}'{hint}")
        try:
            takes.bind(*args, **given)
        except TypeError as error:
            wanted = [one.name for one in takes.parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
            raise ConfigError(
                f"{name} takes {', '.join(wanted[1:]) or 'nothing'} and keywords: {error}."
            ) from error
        return method(*args, **given)

    return checked


def window_of(horizon: int | None, window: Window | None) -> Window:
    """Return the window that horizon and window ask for together.

    Raises:
        ConfigError: Neither is given, they differ, or the horizon is not positive.
    """
    if window is None:
        if horizon is None:
            raise ConfigError("A dataset needs action_horizon, the steps of a chunk, or a window.")
        return Window(as_count(horizon, "action_horizon"))
    if not isinstance(window, Window):
        raise ConfigError(f"window must be a vla.types.Window, got {window!r}; for a chunk: action_horizon.")
    if horizon not in (None, window.horizon):
        raise ConfigError(
            f"action_horizon is {horizon}, but the window has a horizon of {window.horizon}: leave one out."
        )
    return window


def check_item_keys(state: str, action: str, cameras: Sequence[str]) -> None:
    """Raise `ConfigError` where two things of an item would have one key, of which one would be lost.

    Args:
        state: The state's key in an item.
        action: The key of the actions.
        cameras: The cameras' keys.
    """
    keys = [state, action, *cameras]
    own = made_keys(keys)
    for place, key in enumerate(keys):
        if key in own or key in keys[:place]:
            what = "the instruction or a mask of padded steps" if key in own else "something else, too"
            raise ConfigError(
                f"'{key}' is named as the state, the actions or a camera, but in an item this key stands for "
                f"{what}: rename the column."
            )


def made_keys(vectors_and_cameras: Sequence[str]) -> frozenset[str]:
    """Return the keys that an item gets besides those of the dataset's columns: masks, and the instruction.

    Args:
        vectors_and_cameras: Keys of the state, the actions and the cameras.
    """
    return frozenset((TASK_KEY, *(f"{key}_is_pad" for key in vectors_and_cameras)))


def hidden_columns(
    name: str, columns: Columns, vectors: Sequence[str], made: frozenset[str]
) -> dict[str, str]:
    """Return why columns are not in the items, by key: the items hold something else there.

    Args:
        name: The dataset's, for the log.
        columns: All that were read.
        vectors: Keys of the state and the actions.
        made: See `made_keys`.
    """
    found = {
        key: "an item holds a mask or the instruction under this key"
        for key in made
        if key in columns.numbers or key in columns.texts
    }
    found |= {key: "an item holds the joined vector there" for key in vectors if key in columns.texts}
    for key, reason in sorted(found.items()):
        say_once(f"{name}: the column '{key}' is not in the items: {reason}.")
    return found


def say_other_tasks(name: str, episodes: Sequence[Episode], seen: Sequence[tuple[str, ...]]) -> None:
    """Say where the list of episodes has other tasks than their rows, which count.

    Args:
        name: The dataset's, for the log.
        episodes: With the tasks that `meta/episodes` lists.
        seen: The tasks of each one's rows.
    """
    other = [e.index for e, own in zip(episodes, seen, strict=True) if e.tasks and {*e.tasks} != {*own}]
    if other:
        say_once(
            f"{name}: meta/episodes lists other tasks than the rows of {len(other)} episodes "
            f"({other[:5]}) have: the rows count."
        )


def frames_without_task(dataset: Any, rows: np.ndarray | None = None) -> str:
    """Return how many frames have an empty instruction, and of which episodes; nothing where none has.

    Args:
        dataset: A `LeRobotDataset`.
        rows: The frames to look at, all by default.
    """
    blank = [index for index, text in dataset.info.tasks.items() if not text.strip()]
    if not blank:
        return ""
    chosen = np.zeros(len(dataset.low_dim("task_index")), dtype=bool)
    chosen[slice(None) if rows is None else rows] = True
    empty = np.isin(dataset.low_dim("task_index"), blank) & chosen
    spans = zip(dataset.episodes, dataset.episode_slices, strict=True)
    found = [episode.index for episode, span in spans if empty[span].any()]
    if not found:
        return ""
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return (
        f"{dataset.name}: {empty.sum()} of {chosen.sum()} frames have no instruction (episodes "
        f"{', '.join(map(str, found[:5]))}{more})."
    )


def say_no_task(dataset: Any) -> None:
    """Say which frames of a `LeRobotDataset` have an empty instruction: a policy may not act on them."""
    if without := frames_without_task(dataset):
        about = (dataset.name, dataset.info.total_frames, tuple(dataset.info.tasks.items()))
        say_once_of(about, without)  # a run opens parts of it, too


def tasks_of(dataset: Any, span: slice) -> tuple[str, ...]:
    """Return the instructions of some frames of a `LeRobotDataset`, in the order of their first frames."""
    codes = dataset.low_dim("task_index")[span]
    return tuple(dataset.info.tasks[index] for index in dict.fromkeys(codes.tolist()))


def place_of(dataset: Any, row: int) -> str:
    """Say where a frame of a `LeRobotDataset` is, for a message."""
    place = next(number for number, span in enumerate(dataset.episode_slices) if row < span.stop)
    episode, frame = dataset.episodes[place], row - dataset.episode_slices[place].start
    file = f"{dataset.name}/{episode.data_path}" if episode.data_path else dataset.name
    return f"{file}: episode {episode.index}, frame {frame}"


def select_episodes(episodes: list[Episode], wanted: Iterable[int] | None, name: str) -> list[Episode]:
    """Return the wanted episodes in their order, or all.

    Args:
        episodes: All that there are.
        wanted: Their numbers; None is all.
        name: The dataset's, for the message.

    Raises:
        DatasetError: None is wanted, one twice, or one that does not exist.
        ConfigError: It is not a list of whole numbers.
    """
    if wanted is None:
        return episodes
    wanted = as_counts(wanted, "episodes")
    by_index = {episode.index: episode for episode in episodes}
    unknown = [index for index in wanted if index not in by_index]
    if unknown or not len(wanted):
        there = (
            f"it has {len(by_index)}, from {min(by_index)} to {max(by_index)}" if by_index else "it has none"
        )
        some = f"{unknown[:5]}{' and others' if len(unknown) > 5 else ''}"
        raise DatasetError(
            f"Episodes {some} do not exist in {name}: {there}. Correct the list of episodes."
            if unknown
            else f"No episode of {name} was selected: episodes=[]"
        )
    if len(set(wanted)) != len(wanted):
        raise DatasetError(f"Some episodes are selected twice: {sorted(wanted)}.")
    return [by_index[index] for index in wanted]


def check_horizon(horizon: int, episodes: Sequence[Episode], name: str) -> None:
    """Raise `DatasetError` where all chunks of the selected episodes would be padded.

    Args:
        horizon: Steps in an action chunk.
        episodes: The selected episodes.
        name: The dataset's, for the message.
    """
    longest = max(episode.length for episode in episodes)
    if horizon > longest:
        raise DatasetError(
            f"action_horizon is {horizon}, but the longest of the {len(episodes)} episodes in {name} has "
            f"{longest} frames: every chunk would be padded. Choose at most {longest}."
        )


def choose_cameras(
    root: Path, info: DatasetInfo, wanted: Sequence[str] | None, episodes: Sequence[Episode]
) -> tuple[str, ...]:
    """Return the keys of the wanted cameras, or of all that see colours.

    Raises:
        DatasetError: A camera is not there, sees distances instead of colours, or has no place in a video.
    """
    cameras = info.cameras if wanted is None else as_texts(wanted, "cameras")
    if twice := sorted({key for key in cameras if cameras.count(key) > 1}):
        raise ConfigError(f"cameras names {twice} twice: name each once.")
    if wanted is None:
        for feature in info.features.values():
            if feature.is_image and feature.depth is not None:
                _say_left_out(root, feature.key, feature.depth)
    for key in cameras:
        feature = info.features.get(key)
        if feature is None or not feature.is_image:
            hint = did_you_mean(key, info.cameras)
            raise DatasetError(f"There is no camera '{key}'; the dataset has {list(info.cameras)}.{hint}")
        if feature.depth not in (None, NAMED_DEPTH):
            _refuse_depth(key, feature.depth)
        if feature.dtype == "video":
            _check_places(info, key, episodes)
    return cameras


def without_depth(
    root: Path, info: DatasetInfo, cameras: tuple[str, ...], found: Mapping[str, str], asked_for: bool
) -> tuple[DatasetInfo, tuple[str, ...]]:
    """Leave out the cameras that turned out to see distances, in the description as well.

    Args:
        root: The dataset's folder, for the log.
        info: Its description.
        cameras: The chosen cameras.
        found: Why a camera sees distances, by its key.
        asked_for: Whether the cameras were named.

    Raises:
        DatasetError: One of them was named.
    """
    features: dict[str, Feature] = dict(info.features)
    for key, reason in found.items():
        if asked_for:
            _refuse_depth(key, reason)
        _say_left_out(root, key, reason)
        features[key] = replace(features[key], depth=reason)
    return replace(info, features=features), tuple(key for key in cameras if key not in found)


def _say_left_out(root: Path, key: str, reason: str) -> None:
    say_once(f"{root}: '{key}' records depth, not colours ({reason}): it is left out.")


def _refuse_depth(key: str, reason: str | None) -> None:
    raise DatasetError(
        f"'{key}' records depth, not colours ({reason}), and cannot be a camera: 8 bits of colour would be "
        "made of its distances. Leave it out."
    )


def whole_number(index: Any) -> int:
    """Return a frame's number; raises `DatasetError` where it is a slice, a list, or a text."""
    try:
        return operator.index(index)
    except TypeError as error:
        raise DatasetError(
            f"A frame is asked for by its number, got {index!r}. For several: "
            "[dataset[i] for i in range(0, 2)], or torch.utils.data.Subset(dataset, range(0, 2))."
        ) from error


def frame_number(index: Any, length: int) -> int:
    """Return the row of the frame with a number, counted from the end where it is negative.

    Raises:
        DatasetError: It is not a whole number: a slice, a list, a text.
        IndexError: There is no such frame.
    """
    number = whole_number(index)
    if not -length <= number < length:
        raise IndexError(f"The dataset has {length} frames, index {number} is outside.")
    return number % length


def _check_places(info: DatasetInfo, key: str, episodes: Sequence[Episode]) -> None:
    if info.video_path is None:
        raise DatasetError(f"meta/info.json: 'video_path' is missing or null, but '{key}' is a video.")
    if missing := [episode.index for episode in episodes if key not in episode.videos]:
        some = f"{missing[:5]}{' and others' if len(missing) > 5 else ''}"
        raise DatasetError(
            f"meta/episodes does not say where the videos of '{key}' are (videos/{key}/chunk_index, "
            f"file_index, from_timestamp) for the episodes {some}."
        )
