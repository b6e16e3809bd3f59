"""Tables of `datasets` for tests, whose pixels say which frame they are (`tests.data.make`)."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from PIL import Image

from tests.data.make import draw_code, low_dim, task_of, write_mp4
from vla.data import ColumnNames, TableOptions

LENGTHS = (5, 12, 3)
FPS = 10
OPTIONS = TableOptions(
    ColumnNames(task="instruction", episode="recording", frame="step", timestamp="seconds")
)
"""How the tables here are read."""
KEYS = {"state_key": "pose", "action_key": "command"}


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """An image as a file's bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def frames(lengths: Sequence[int] = LENGTHS) -> list[tuple[int, int]]:
    """(episode, frame) of every row, in order."""
    return [(episode, frame) for episode, length in enumerate(lengths) for frame in range(length)]


def make_columns(lengths: Sequence[int] = LENGTHS) -> dict[str, list]:
    """The columns of a table without images; tasks, states and actions are `make`'s."""
    rows = frames(lengths)
    vectors = [low_dim(episode, length, 3, 3) for episode, length in enumerate(lengths)]
    return {
        "pose": [vectors[episode][0][frame].tolist() for episode, frame in rows],
        "command": [vectors[episode][1][frame].tolist() for episode, frame in rows],
        "instruction": [task_of(episode) for episode, _ in rows],
        "recording": [episode for episode, _ in rows],
        "step": [frame for _, frame in rows],
        "seconds": [frame / FPS for _, frame in rows],
    }


FEATURES: dict[str, Any] = {
    "pose": datasets.List(datasets.Value("float32"), length=3),
    "command": datasets.List(datasets.Value("float32"), length=3),
    "seconds": datasets.Value("float32"),
}


def make_table(
    columns: Mapping[str, list] | None = None, features: Mapping[str, Any] | None = None, image: bool = True
) -> datasets.Dataset:
    """A table of three episodes, with columns replaced or added, or left out where they are None."""
    values: dict[str, Any] = make_columns()
    types = dict(FEATURES)
    if image:
        values["view"] = [{"bytes": encoded(draw_code(e, f, 0)), "path": None} for e, f in frames()]
        types["view"] = datasets.Image()
    values |= columns or {}
    values = {key: column for key, column in values.items() if column is not None}
    types |= features or {}
    whole = datasets.Dataset.from_dict({key: column for key, column in values.items() if key not in types})
    chosen = {key: types[key] for key in values if key in types}
    return datasets.Dataset.from_dict(values, features=datasets.Features({**whole.features, **chosen}))


def make_videos(folder):
    """A video for each episode, the first of which begins after two frames that belong to none."""
    paths = []
    for episode, length in enumerate(LENGTHS):
        codes = [draw_code(episode, frame, 0) for frame in range(length)]
        write_mp4(folder / f"{episode}.mp4", [draw_code(9, 9, 0)] * 2 * (episode == 0) + codes, FPS)
        paths += [str(folder / f"{episode}.mp4")] * length
    starts = [0.2 if episode == 0 else 0.0 for episode, _ in frames()]
    return {"view": paths, "view.from_timestamp": starts}, {"view": datasets.Video()}
