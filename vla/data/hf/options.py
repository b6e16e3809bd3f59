"""How a table of `datasets` is read: which columns say what LeRobot's files say by themselves."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ColumnNames:
    """Columns that say which frame of which episode a row is, and what was to be done.

    Attributes:
        task: The instruction: text, or a class label.
        episode: Which episode a row belongs to: whole numbers, text, or a class label.
        frame: Number of the frame within its episode; None takes `frame_index` where the table has it, and
            else the order of the rows.
        timestamp: Seconds since the episode's start, or any other clock in seconds; None takes `timestamp`
            where the table has it, and else counts frames.
    """

    task: str = "task"
    episode: str = "episode_index"
    frame: str | None = None
    timestamp: str | None = None


@dataclass(frozen=True)
class TableOptions:
    """What has to be said of a table of `datasets`.

    Attributes:
        columns: See `ColumnNames`.
        split: Which split; None takes the only one, or `train`.
        subset: Which subset (configuration) of a hub dataset; None takes its default.
        fps: Frames per second; None takes it from the timestamps.
    """

    columns: ColumnNames = field(default_factory=ColumnNames)
    split: str | None = None
    subset: str | None = None
    fps: float | None = None
