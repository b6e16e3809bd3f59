"""One way in to every dataset: by its path."""

from collections.abc import Sequence
from pathlib import Path

from vla.data.dataset import LeRobotDataset
from vla.data.hf.dataset import HuggingFaceDataset
from vla.data.hf.options import TableOptions
from vla.data.hf.source import PREFIX, is_table
from vla.data.video import OPEN_VIDEOS
from vla.errors import ConfigError
from vla.types import ACTION_KEY, STATE_KEY, Window


def open_dataset(
    path: str | Path,
    options: TableOptions | None = None,
    *,
    action_horizon: int | None = None,
    window: Window | None = None,
    episodes: Sequence[int] | None = None,
    cameras: Sequence[str] | None = None,
    action_key: str | Sequence[str] = ACTION_KEY,
    state_key: str | Sequence[str] = STATE_KEY,
    revision: str | None = None,
    tolerance_s: float | None = None,
    cache_frames: bool = False,
    open_videos: int = OPEN_VIDEOS,
    streaming: bool = False,
    streaming_disk_gb: float | None = None,
) -> LeRobotDataset:
    """Open a LeRobot dataset, or, where the path begins with `hf:`, a table of `datasets`.

    Args:
        path: Folder or hub id.
        options: How to read a table; LeRobot datasets say these things by themselves.
        action_horizon: Steps in an action chunk. This and all that follow: see `LeRobotDataset`.
        window: Which frames make up a sample.
        episodes: Episodes to use.
        cameras: Camera keys to decode.
        action_key: Column of the actions.
        state_key: Column of the state.
        revision: Branch, tag or commit of a hub dataset.
        tolerance_s: Tolerance of video times.
        cache_frames: Keep decoded frames.
        open_videos: Video files kept open.
        streaming: Download videos when they are needed; not of tables.
        streaming_disk_gb: Disk space for them.

    Raises:
        DatasetError: See the two classes.
        ConfigError: A table is to be streamed; or see the two classes.
    """
    if not is_table(path):
        return LeRobotDataset(
            path,
            action_horizon=action_horizon,
            window=window,
            episodes=episodes,
            cameras=cameras,
            action_key=action_key,
            state_key=state_key,
            revision=revision,
            tolerance_s=tolerance_s,
            cache_frames=cache_frames,
            open_videos=open_videos,
            streaming=streaming,
            streaming_disk_gb=streaming_disk_gb,
        )
    if streaming:
        raise ConfigError(
            f"{path} cannot be streamed: a table of `datasets` ({PREFIX}) is downloaded as a whole, and "
            "read from disk. Leave streaming out; LeRobot datasets of the hub can be streamed."
        )
    return HuggingFaceDataset(
        path,
        options,
        action_horizon=action_horizon,
        window=window,
        episodes=episodes,
        cameras=cameras,
        action_key=action_key,
        state_key=state_key,
        revision=revision,
        tolerance_s=tolerance_s,
        cache_frames=cache_frames,
        open_videos=open_videos,
    )
