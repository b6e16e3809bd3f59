import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.data.make import CAMERAS, draw_code, read_code
from tests.data.writing.recording import frame, leftovers, make_writer, record
from vla.data import LeRobotDataset
from vla.errors import ConfigError, DatasetError, ShapeError


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"other": 1}, DatasetError, r"unknown \['other'\]"),
        ({CAMERAS[0]: np.zeros((32, 32, 3), np.uint8)}, ShapeError, r"must be uint8 \[32, 64, 3\]"),
        ({CAMERAS[0]: np.zeros((32, 64, 3))}, ShapeError, "got float64"),
        ({"action": [0.0, 0.0]}, ShapeError, r"action must have shape \[3\], got \[2\]"),
        ({"action": [0.0, np.nan, 0.0]}, DatasetError, "action of episode 1, frame 1 is not finite"),
        (
            {"action": [0.0, 1e300, 0.0]},
            DatasetError,
            r"action of episode 1, frame 1 is 1e\+300 at dimension 1, which is too large for float32",
        ),
        ({"observation.state": {"x": 0, "y": 1}}, ShapeError, "must be 2 numbers, got {'x': 0"),
        ({"observation.state": ["0", "1"]}, ShapeError, "must be 2 numbers"),
        ({"observation.state": [None, 1]}, ShapeError, "must be 2 numbers"),
        ({"observation.state": [[0], [1, 2]]}, ShapeError, "must be 2 numbers"),
        ({CAMERAS[0]: None}, ShapeError, "must be uint8 .*, got None"),
        ({5: 1, "other": 1}, DatasetError, r"unknown \[5, 'other'\]"),
    ],
)
def test_bad_frames(tmp_path, changes, error, message):
    writer = make_writer(tmp_path / "x")
    for _ in range(2):
        writer.add_frame(frame())
        if not writer._episode_rows:
            writer.save_episode("task")
    with pytest.raises(error, match=message):
        writer.add_frame(frame() | changes)
    incomplete = frame()
    del incomplete["response"]
    with pytest.raises(DatasetError, match=r"missing \['response'\]"):
        writer.add_frame(incomplete)
    with pytest.raises(DatasetError, match=r"A frame must be a mapping .*, got None"):
        writer.add_frame(None)
    writer.abort()


EXTRA = {"float32": 0.5, "int64": 2**53 + 1, "bool": True, "string": "links\0"}


@pytest.mark.parametrize("make", [lambda v: v, np.array, lambda v: np.array([v]), torch.tensor])
def test_extra_features_are_copied_and_read_back(tmp_path, make):
    """A reused buffer holds the last frame's value by the time the episode is written."""
    for name, value in EXTRA.items():
        if name == "string":
            continue
        buffer = make(value)
        with make_writer(tmp_path / name, cameras={}, extra_features={"x": name}) as writer:
            for last in (False, True):
                if last and isinstance(buffer, np.ndarray | torch.Tensor):
                    buffer[...] = 0
                writer.add_frame({"observation.state": [0, 0], "action": [0, 0, 0], "x": buffer})
            writer.save_episode("task")
        written = pq.read_table(tmp_path / name / "data/chunk-000/file-000.parquet")["x"].to_pylist()
        assert written[0] == value
        assert written[1] == (value if buffer is value else 0)
        assert "x" in LeRobotDataset(tmp_path / name, action_horizon=1)[0]


BAD_EXTRA = {
    "float32": ["abc", None, True, np.nan, np.inf, 1e300, [1.0, 2.0], {}, 1j],
    "int64": [2.5, "abc", 2**70, np.uint64(2**63), None, np.nan, [1, 2]],
    "bool": [1, "true", None, 0.0],
    "string": [5, None, ["left"], b"left", "\ud800"],
}


def test_bad_extra_values_are_refused_at_once_and_spoil_nothing(tmp_path):
    extra = {f"x_{dtype}": dtype for dtype in BAD_EXTRA}
    good = {"observation.state": [0, 0], "action": [0, 0, 0]} | {f"x_{k}": v for k, v in EXTRA.items()}
    with make_writer(tmp_path / "x", cameras={}, extra_features=extra) as writer:
        for dtype, values in BAD_EXTRA.items():
            for value in values:
                with pytest.raises(DatasetError, match=f"x_{dtype} of episode 0, frame 0 (must be|is)"):
                    writer.add_frame({**good, f"x_{dtype}": value})
        writer.add_frame(good)
        for task in (None, 5, ["pick"], b"pick", "\ud800"):
            with pytest.raises(DatasetError, match="The task of episode 0"):
                writer.save_episode(task)
        writer.save_episode("task")
    item = LeRobotDataset(tmp_path / "x", action_horizon=1)[0]
    assert {key: item[f"x_{key}"] for key in EXTRA} == EXTRA
    assert pq.read_table(tmp_path / "x/meta/tasks.parquet")["task"].to_pylist() == ["task"]


@pytest.mark.parametrize(
    "fps", [30.0, np.int64(30), np.float32(30), torch.tensor(30)], ids=lambda fps: type(fps).__name__
)
def test_rates_of_every_kind_of_number(tmp_path, fps):
    info = json.loads((record(tmp_path / "x", (2,), fps=fps) / "meta/info.json").read_text())
    assert repr(info["fps"]) == "30"


def test_frames_of_tensors(tmp_path):
    tensors = {
        CAMERAS[0]: torch.from_numpy(draw_code(0, 0, 0)),
        "observation.state": torch.tensor([0.0, 0.5], dtype=torch.bfloat16),
        "action": torch.tensor([1.0, 2.0, 3.0], requires_grad=True),
    }
    with make_writer(tmp_path / "x") as writer:
        writer.add_frame(frame(**tensors))
        writer.save_episode("task")
    item = LeRobotDataset(tmp_path / "x", action_horizon=1)[0]
    assert item["observation.state"].tolist() == [0, 0.5]
    assert item["action"].tolist() == [[1, 2, 3]]
    assert read_code(item[CAMERAS[0]]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra_features": {"response": "text"}}, "extra_features must be one of"),
        ({"extra_features": {"action": "float32"}}, r"used twice: \['action'\]"),
        ({"cameras": {"top": (31, 64)}}, "even sizes"),
        ({"codec": "vp9"}, "codec must be one of"),
        ({"fps": 29.97}, "fps must be a whole number"),
        ({"fps": 0, "cameras": {}}, "fps must be a whole number"),
        *(({"fps": fps}, "fps must be a whole number") for fps in ("10", None, True, np.nan, np.inf, [10])),
        *(
            ({"cameras": {key: (32, 64)}}, r"feature name .* cannot be used")
            for key in ("", ".", "..", "../x", "../../../evil", "/abs", "a/b", "a\\b", "a\0", 5)
        ),
        ({"extra_features": {"../r": "bool"}}, r"feature name '\.\./r' cannot be used"),
        ({"cameras": {"x" * 201: (32, 64)}}, "longer than 200 bytes"),
        ({"cameras": [CAMERAS[0]]}, "cameras must map each camera"),
        *(
            ({"cameras": {"top": size}}, r"must be \(height, width\)")
            for size in (32, (32, 64, 3), "ab", None)
        ),
        ({"state_names": ["x", "x"]}, r"state_names names dimensions of 'observation\.state' twice: \['x'\]"),
        *(({"state_names": names}, "state_names must be a list") for names in (2, None, "xy", [], [1, 2])),
        *(({"action_names": {"a": n}}, "for each dimension of 'a'") for n in (2, "xy", [None])),
        ({"extra_features": {"r": {"dtype": "float32", "shape": (1,)}}}, "extra_features must be one of"),
        ({"extra_features": ["r"]}, "extra_features must map each column"),
        ({"extra_features": {"action_is_pad": "bool"}}, r"of their own .*\['action_is_pad'\]"),
        ({"extra_features": {"task": "string"}}, r"of their own .*\['task'\]"),
        *(
            ({"video_file_mb": mb}, "video_file_mb must be a number")
            for mb in ("x", None, -1, np.nan, np.inf)
        ),
        ({"robot_type": None}, "robot_type must be text"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        make_writer(tmp_path / "x", **options)
    assert leftovers(tmp_path) == []
