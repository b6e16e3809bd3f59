"""v3.0 on disk: many episodes per parquet and video file; metadata in parquet too."""

from pathlib import Path
from typing import Any

from vla.data.lerobot.columns import read_table
from vla.data.lerobot.episodes import Episode, VideoSpan, add_task, check_totals, texts_of
from vla.data.lerobot.fields import fill_template, number, shown, whole
from vla.data.lerobot.schema import DatasetInfo
from vla.errors import DatasetError
from vla.paths import is_hidden

TASKS_PATH = "meta/tasks.parquet"
EPISODES_FOLDER = "meta/episodes"
_FILE = ("chunk_index", "file_index")
_PLACE = (*_FILE, "from_timestamp")


def read_tasks(root: Path) -> dict[int, str]:
    """Read instruction by task index from meta/tasks.parquet; raises `DatasetError` if it is not that.

    The text is the index column of a pandas frame: called `task`, or unnamed in older files.
    """
    path = root / TASKS_PATH
    if not path.exists():
        raise DatasetError(
            f"{path} is missing: a v3.0 dataset (codebase_version in meta/info.json) needs it."
        )
    table = read_table(path)
    texts = [name for name in ("task", "__index_level_0__") if name in table.column_names]
    if "task_index" not in table.column_names or not texts:
        raise DatasetError(f"{path} must have the columns task_index and task, got {table.column_names}.")
    indices, tasks = table["task_index"].to_pylist(), table[texts[0]].to_pylist()
    where = str(path)
    found: dict[int, str] = {}
    for index, task in zip(indices, tasks, strict=True):
        add_task(found, whole(index, "task_index", where), task, where)
    return found


def read_episodes(root: Path, info: DatasetInfo) -> list[Episode]:
    """Read meta/episodes/*/*.parquet, sorted by episode index.

    Raises:
        DatasetError: A file is missing or corrupt, lacks a column, or disagrees with info.json.
    """
    cameras = [key for key, feature in info.features.items() if feature.dtype == "video" and info.video_path]
    needed = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    optional = ["tasks", *(f"videos/{key}/{name}" for key in cameras for name in (*_PLACE, "to_timestamp"))]
    episodes = []
    for path in _episode_files(root):
        # The per-episode statistics are most of the file's bytes and are not needed here.
        for row in read_table(path, needed, optional).to_pylist():
            if any(row[name] is None for name in needed):
                raise DatasetError(
                    f"{path}: episode {row['episode_index']} has an empty field: {shown(row)}."
                )
            episodes.append(_episode(row, info, cameras, str(path)))
    check_totals(info, episodes, root / EPISODES_FOLDER)
    return sorted(episodes, key=lambda episode: episode.index)


def metadata_files(root: Path) -> list[Path]:
    """Metadata files besides info.json."""
    return [root / TASKS_PATH, *_episode_files(root)]


def _episode_files(root: Path) -> list[Path]:
    found = (root / EPISODES_FOLDER).glob("*/*.parquet")
    files = sorted(path for path in found if not is_hidden(path))
    if not files:
        raise DatasetError(f"{root / EPISODES_FOLDER} holds no parquet file: the dataset lists no episodes.")
    return files


def _episode(row: dict[str, Any], info: DatasetInfo, cameras: list[str], source: str) -> Episode:
    def place(prefix: str) -> dict[str, int]:
        return {name: whole(row[f"{prefix}/{name}"], f"{prefix}/{name}", source) for name in _FILE}

    videos = {}
    for key in cameras:
        start, stop = (row.get(f"videos/{key}/{name}") for name in ("from_timestamp", "to_timestamp"))
        if any(row.get(f"videos/{key}/{name}") is None for name in _PLACE):
            continue  # a camera that is asked for is then missed
        path = fill_template(info.video_path or "", "video_path", video_key=key, **place(f"videos/{key}"))
        times = {"from_timestamp": start, "to_timestamp": stop}
        videos[key] = VideoSpan(
            path,
            number(times, "from_timestamp", f"{source}, videos/{key}"),
            None if stop is None else number(times, "to_timestamp", f"{source}, videos/{key}"),
        )
    data_path = fill_template(info.data_path, "data_path", **place("data"))
    index, length = (whole(row[name], name, source) for name in ("episode_index", "length"))
    return Episode(index, length, texts_of(row.get("tasks")), data_path, videos)
