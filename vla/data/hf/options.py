"""How a table of `datasets` is read: which columns say what LeRobot's files say by themselves."""

from dataclasses import dataclass, field

from vla.errors import ConfigError
from vla.types import as_number, as_text


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

    def __post_init__(self) -> None:
        for name in ("task", "episode"):
            as_text(getattr(self, name), f"The column of the {name}")
        for name in ("frame", "timestamp"):
            if getattr(self, name) is not None:
                as_text(getattr(self, name), f"The column of the {name}")


@dataclass(frozen=True)
class TableOptions:
    """What has to be said of a table of `datasets`.

    Attributes:
        columns: See `ColumnNames`.
        split: Which split, or parts of splits as `datasets.load_dataset` takes them (`train[:50%]`,
            `train+test`); None takes the only one, or `train`.
        subset: Which subset (configuration) of a hub dataset; None takes its default.
        fps: Frames per second; None takes it from the timestamps.
    """

    columns: ColumnNames = field(default_factory=ColumnNames)
    split: str | None = None
    subset: str | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.columns, ColumnNames):
            raise ConfigError(f"The columns of a table are ColumnNames(task=..., ...), got {self.columns!r}.")
        for name in ("split", "subset"):
            if getattr(self, name) is not None:
                as_text(getattr(self, name), f"The {name} of a table")
        if self.fps is not None:
            object.__setattr__(self, "fps", as_number(self.fps, "fps"))
            if self.fps <= 0:
                raise ConfigError(f"fps must be above 0, got {self.fps:g}.")
