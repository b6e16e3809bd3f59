"""Any settings and any frames: a dataset with what was recorded, or a sentence and nothing left."""

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.writing.recording import CAMERAS, frame, leftovers
from tests.fuzzing import fuzz
from vla.data import LeRobotDataset, LeRobotWriter
from vla.errors import VlaError

COLUMNS = ("x", "action", "observation.state", "timestamp", "task", "index", "observation.images.top")
NAMES = st.sampled_from([*COLUMNS, "a/b", "..", "", "é", "a\0", "n" * 300])
NUMBERS = [10**12, 1e300, float("nan"), np.float32(10), np.int64(30), torch.tensor(10), object(), {"x"}]
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.floats(), st.text(max_size=3), st.binary(max_size=2),
    NAMES, st.sampled_from(NUMBERS),
)  # fmt: skip
VALUES = st.recursive(
    ODD,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=2) | st.tuples(inner, inner)
    ),
    max_leaves=4,
)
SETTINGS = {
    "fps": 10,
    "cameras": {CAMERAS[0]: (32, 64)},
    "state_names": ["x", "y"],
    "action_names": ["dx", "dy", "grip"],
    "robot_type": "arm",
    "extra_features": {"response": "string"},
    "codec": "h264",
    "data_file_mb": 1,
    "video_file_mb": 1,
}
FOLDERS = itertools.count()


def records_or_says(folder, settings, frames, task):
    """Record; whatever was given, the dataset opens with as many frames, or nothing is left of it."""
    try:
        with LeRobotWriter(folder, **settings) as writer:
            for one in frames:
                writer.add_frame(one)
            writer.save_episode(task)
    except VlaError as error:
        assert str(error)  # noqa: PT017
        assert leftovers(folder.parent) == []
        return
    dataset = LeRobotDataset(folder, action_horizon=1)
    assert len(dataset) == len(frames)
    assert torch.isfinite(dataset[0][dataset.state_key]).all()
    assert dataset[0]["task"] == task


@fuzz(examples=60)
@given(data=st.data())
def test_fuzz_any_settings_record_or_are_refused(tmp_path, data):
    folder = tmp_path / str(next(FOLDERS)) / "new"
    folder.parent.mkdir()
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(SETTINGS)), VALUES, min_size=1, max_size=2))
    records_or_says(folder, SETTINGS | changes, [frame(i) for i in range(2)], "go")


@fuzz(examples=60)
@given(data=st.data())
def test_fuzz_any_frames_are_recorded_or_refused(tmp_path, data):
    folder = tmp_path / str(next(FOLDERS)) / "new"
    folder.parent.mkdir()
    keys = st.sampled_from(sorted(frame())) | NAMES
    frames = [
        frame(i) | (data.draw(st.dictionaries(keys, VALUES, max_size=1)) if i else {}) for i in range(2)
    ]
    if data.draw(st.booleans()):
        frames[1] = data.draw(VALUES)
    records_or_says(folder, SETTINGS, frames, data.draw(st.just("go") | VALUES))
