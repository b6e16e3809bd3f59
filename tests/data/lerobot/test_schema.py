import json

import pytest

from tests.data.make import make_dataset, write_json
from vla.data.lerobot.schema import read_info
from vla.errors import DatasetError


def info(**changes):
    camera = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    values = {
        "codebase_version": "v3.0",
        "fps": 30,
        "robot_type": "arm",
        "total_episodes": 2,
        "total_frames": 10,
        "chunks_size": 1000,
        "data_path": "data/{chunk_index}",
        "video_path": "videos/{video_key}",
        "features": {
            "observation.images.top": camera,
            "action": {"dtype": "float32", "shape": [2], "names": ["x", "grip"]},
        },
    }
    return {**values, **changes}


def test_both_versions_give_the_same_description(tmp_path):
    read = {}
    for version in ("v2.1", "v3.0"):
        write_json(tmp_path / version / "meta/info.json", info(codebase_version=version))
        read[version] = read_info(tmp_path / version)
    assert read["v2.1"].features == read["v3.0"].features
    assert read["v3.0"].cameras == ("observation.images.top",)
    assert read["v3.0"].features["observation.images.top"].shape == (48, 64, 3)
    assert read["v3.0"].fps == 30


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([3, 48, 64], ["channels", "height", "width"]),
        ([3, 48, 64], ["channel", "height", "width"]),
        ([3, 48, 64], None),
        ([48, 64, 3], None),
        ([48, 64, 3], ["height", "width", "channel"]),
    ],
)
def test_camera_shape_is_read_by_its_names(tmp_path, shape, names):
    features = {"top": {"dtype": "video", "shape": shape, "names": names}}
    write_json(tmp_path / "meta/info.json", info(features=features))
    assert read_info(tmp_path).features["top"].shape == (48, 64, 3)


def test_dimension_names(tmp_path):
    features = {
        "flat": {"dtype": "float32", "shape": [2], "names": ["x", "grip"]},
        "grouped": {"dtype": "float32", "shape": [2], "names": {"motors": ["x", "grip"]}},
        "nameless": {"dtype": "float32", "shape": [2]},
        "scalar": {"dtype": "float32", "shape": [1], "names": None},
    }
    write_json(tmp_path / "meta/info.json", info(features=features))
    read = read_info(tmp_path).features
    assert read["flat"].dimension(1) == read["grouped"].dimension(1) == ", dimension 1 (grip)"
    assert read["nameless"].dimension(1) == ", dimension 1"
    assert read["scalar"].dimension(0) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version.*'v1.6'.*v2.1 and v3.0"),
        ({"codebase_version": None}, "codebase_version.*None"),
        ({"total_episodes": 0}, "is empty: .* total_episodes = 0"),
        ({"total_frames": 0}, "is empty"),
        ({"fps": 0}, "fps = 0"),
        ({"fps": "fast"}, "'fps' must be a number, got 'fast'"),
        ({"features": {"top": {"dtype": "video", "shape": [48, 64]}}}, "three sizes"),
        ({"features": {"top": {"dtype": "video"}}}, "'shape' is missing"),
        ({"features": []}, "'features' must map keys"),
    ],
)
def test_bad_description(tmp_path, changes, message):
    write_json(tmp_path / "meta/info.json", info(**changes))
    with pytest.raises(DatasetError, match=message):
        read_info(tmp_path)


def test_missing_field_is_named(tmp_path):
    values = info()
    del values["data_path"]
    write_json(tmp_path / "meta/info.json", values)
    with pytest.raises(DatasetError, match="'data_path' is missing"):
        read_info(tmp_path)


def test_missing_or_broken_file(tmp_path):
    with pytest.raises(DatasetError, match=r"info.json is missing"):
        read_info(tmp_path)
    (tmp_path / "meta").mkdir()
    for text, message in (("{", "is not JSON"), (json.dumps([1]), "must hold a JSON object, got a list")):
        (tmp_path / "meta/info.json").write_text(text)
        with pytest.raises(DatasetError, match=message):
            read_info(tmp_path)


def test_unknown_feature_names_its_neighbour(tmp_path):
    write_json(tmp_path / "meta/info.json", info())
    with pytest.raises(DatasetError, match=r"no 'actions' for the actions.*Did you mean 'action'"):
        read_info(tmp_path).feature("actions", "the actions")


def test_a_mark_that_editors_put_in_front_is_passed_over(tmp_path):
    make_dataset(tmp_path / "set", episodes=1, length=3)
    path = tmp_path / "set" / "meta" / "info.json"
    expected = read_info(tmp_path / "set")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_info(tmp_path / "set") == expected
