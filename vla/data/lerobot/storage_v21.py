"""v2.1 on disk: one parquet file and one video per camera for every episode; metadata in JSON lines."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vla.data.hub import refuse_pointer
from vla.data.lerobot.episodes import Episode, VideoSpan, add_task, check_totals, texts_of
from vla.data.lerobot.fields import fill_template, present, shown, whole
from vla.data.lerobot.schema import DatasetInfo
from vla.errors import DatasetError

TASKS_PATH = "meta/tasks.jsonl"
EPISODES_PATH = "meta/episodes.jsonl"


def read_tasks(root: Path) -> dict[int, str]:
    """Read instruction by task index from meta/tasks.jsonl; raises `DatasetError` on a bad line."""
    tasks: dict[int, str] = {}
    for where, line in _lines(root / TASKS_PATH):
        index = whole(present(line, "task_index", where), "task_index", where)
        add_task(tasks, index, present(line, "task", where), where)
    return tasks


def read_episodes(root: Path, info: DatasetInfo) -> list[Episode]:
    """Read meta/episodes.jsonl, sorted by episode index.

    Raises:
        DatasetError: The file is missing, has a bad line, or disagrees with info.json.
    """
    cameras = [key for key, feature in info.features.items() if feature.dtype == "video" and info.video_path]
    episodes = []
    for where, line in _lines(root / EPISODES_PATH):
        index, length = (
            whole(present(line, field, where), field, where) for field in ("episode_index", "length")
        )
        place: dict[str, Any] = {"episode_chunk": index // info.chunks_size, "episode_index": index}
        videos = {
            key: VideoSpan(fill_template(info.video_path or "", "video_path", video_key=key, **place))
            for key in cameras
        }
        data_path = fill_template(info.data_path, "data_path", **place)
        episodes.append(Episode(index, length, texts_of(line.get("tasks")), data_path, videos))
    check_totals(info, episodes, root / EPISODES_PATH)
    return sorted(episodes, key=lambda episode: episode.index)


def metadata_files(root: Path) -> list[Path]:
    """Metadata files besides info.json."""
    return [root / TASKS_PATH, root / EPISODES_PATH]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    refuse_pointer(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path} is missing: a v2.1 dataset (codebase_version in meta/info.json) needs it."
        ) from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not text: {error}.") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                values = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DatasetError(f"{path}, line {number} is not JSON: {error}.") from error
            if not isinstance(values, dict):
                raise DatasetError(f"{path}, line {number} must hold a JSON object, got {shown(values)}.")
            yield f"{path}, line {number}", values
