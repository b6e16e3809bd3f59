"""One way in to every dataset: by its path."""

from pathlib import Path
from typing import Any

from vla.data.dataset import LeRobotDataset
from vla.data.hf.dataset import HuggingFaceDataset
from vla.data.hf.options import TableOptions
from vla.data.hf.source import PREFIX, is_table
from vla.errors import ConfigError
from vla.types import as_flag


def open_dataset(
    path: str | Path,
    options: TableOptions | None = None,
    *,
    streaming: bool = False,
    streaming_disk_gb: float | None = None,
    **reading: Any,
) -> LeRobotDataset:
    """Open a LeRobot dataset, or, where the path begins with `hf:`, a table of `datasets`.

    Args:
        path: Folder or hub id.
        options: How to read a table; LeRobot datasets say these things by themselves.
        streaming: Download videos when they are needed; not of tables.
        streaming_disk_gb: Disk space for them.
        **reading: What both kinds take: `action_horizon`, `window`, `episodes`, `cameras`, `action_key`,
            `state_key`, `revision`, `tolerance_s`, `cache_frames`, `open_videos`; see `LeRobotDataset`.

    Raises:
        DatasetError: See the two classes.
        ConfigError: A table is to be streamed; or see the two classes.
    """
    as_flag(streaming, "streaming")
    if not is_table(path):
        return LeRobotDataset(path, streaming=streaming, streaming_disk_gb=streaming_disk_gb, **reading)
    if streaming:
        raise ConfigError(
            f"{path} cannot be streamed: a table of `datasets` ({PREFIX}) is downloaded as a whole, and "
            "read from disk. Leave streaming out; LeRobot datasets of the hub can be streamed."
        )
    return HuggingFaceDataset(path, options, **reading)
