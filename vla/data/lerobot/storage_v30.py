"""v3.0 on disk: many episodes per parquet and video file; metadata in parquet too."""

from pathlib import Path
from typing import Any

from vla.data.lerobot.columns import read_table
from vla.data.lerobot.episodes import Episode, VideoSpan, check_totals, fill_template
from vla.data.lerobot.schema import DatasetInfo
from vla.errors import DatasetError

TASKS_PATH = "meta/tasks.parquet"
EPISODES_FOLDER = "meta/episodes"


def read_tasks(root: Path) -> dict[int, str]:
    """Read instruction by task index from meta/tasks.parquet; raises `DatasetError` if it is not that.

    The text is the index column of a pandas frame: called `task`, or unnamed in older files.
    """
    table = read_table(root / TASKS_PATH)
    texts = [name for name in ("task", "__index_level_0__") if name in table.column_names]
    if "task_index" not in table.column_names or not texts:
        raise DatasetError(
            f"{root / TASKS_PATH} must have the columns task_index and task, got {table.column_names}."
        )
    indices, tasks = table["task_index"].to_pylist(), table[texts[0]].to_pylist()
    return {int(index): str(task) for index, task in zip(indices, tasks, strict=True)}


def read_episodes(root: Path, info: DatasetInfo) -> list[Episode]:
    """Read meta/episodes/*/*.parquet, sorted by episode index.

    Raises:
        DatasetError: A file is missing or corrupt, lacks a column, or disagrees with info.json.
    """
    cameras = [key for key in info.cameras if info.features[key].dtype == "video"]
    columns = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    for key in cameras:
        columns += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    episodes = []
    for path in _episode_files(root):
        # The per-episode statistics are most of the file's bytes and are not needed here.
        for row in read_table(path, columns).to_pylist():
            if any(value is None for value in row.values()):
                raise DatasetError(f"{path}: episode {row['episode_index']} has an empty field: {row}.")
            episodes.append(_episode(row, info, cameras))
    check_totals(info, episodes, root / EPISODES_FOLDER)
    return sorted(episodes, key=lambda episode: episode.index)


def metadata_files(root: Path) -> list[Path]:
    """Metadata files besides info.json."""
    return [root / TASKS_PATH, *_episode_files(root)]


def _episode_files(root: Path) -> list[Path]:
    files = sorted((root / EPISODES_FOLDER).glob("*/*.parquet"))
    if not files:
        raise DatasetError(f"{root / EPISODES_FOLDER} holds no parquet file: the dataset lists no episodes.")
    return files


def _episode(row: dict[str, Any], info: DatasetInfo, cameras: list[str]) -> Episode:
    videos = {}
    for key in cameras:
        path = fill_template(
            info.video_path or "",
            "video_path",
            video_key=key,
            chunk_index=row[f"videos/{key}/chunk_index"],
            file_index=row[f"videos/{key}/file_index"],
        )
        videos[key] = VideoSpan(path, float(row[f"videos/{key}/from_timestamp"]))
    data_path = fill_template(
        info.data_path, "data_path", chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
    )
    return Episode(int(row["episode_index"]), int(row["length"]), tuple(row["tasks"]), data_path, videos)
