"""Every field of info.json, absent, null, of a wrong type, and contradicting the files."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.make import (
    CAMERAS,
    edit_info,
    low_dim,
    make_dataset,
    read_code,
    task_of,
    write_json,
    write_jsonl,
)
from tests.folders import files_of
from tests.fuzzing import fuzz
from vla.data import LeRobotDataset
from vla.data.lerobot import fields
from vla.errors import DatasetError, VlaError

N = 3
TOP = CAMERAS[0]
ABSENT = object()
WRONG = (None, True, -1, 2.5, float("nan"), "nonsense", [], {})


@pytest.fixture(scope="module", params=["v3.0", "v2.1"])
def root(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("info") / "x"
    return make_dataset(folder, request.param, episodes=2, length=N, cameras=[TOP], response=True)


def places(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field below a mapping, mappings included."""
    for key, below in value.items():
        yield (*at, key)
        if isinstance(below, dict):
            yield from places(below, (*at, key))


def contradictions(value: Any) -> Iterator[Any]:
    """Other values of the same type."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value * 7, value - 1)
    elif isinstance(value, str):
        others = {"v3.0": "v2.1", "v2.1": "v3.0", "float32": "int64", "int64": "float32", "video": "image"}
        yield from (others.get(value, f"{value}x"), value[::-1], "string", "float64", "gray12le")
    elif isinstance(value, list):
        yield from (value[::-1], value[1:], [*value, *value], [value])
    elif isinstance(value, dict):
        yield from (dict(list(value.items())[1:]), {**value, "more": value})


def changed(info: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    info = copy.deepcopy(info)
    holder: Any = info
    for key in place[:-1]:
        holder = holder[key]
    if value is ABSENT:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return info


def is_right(dataset: LeRobotDataset) -> bool:
    """Whether everything that the dataset still gives is what was recorded."""
    item = dataset[N + 1]
    (state, action), here = low_dim(1, N, 3, 3), int(dataset.episodes[1].index)
    shown = [read_code(item[key]) == (1, 1, 0) for key in dataset.cameras]
    depth = [feature.depth for feature in dataset.info.features.values() if feature.is_image]
    return (
        len(dataset) == 2 * N
        and here == 1
        and np.array_equal(item["observation.state"], state[1])
        and np.array_equal(item["action"], action[[1, 2]])
        and item["task"] == task_of(1)
        and int(item["index"]) == N + 1
        and abs(float(item["timestamp"]) - 0.1) < 1e-6
        and all(shown)
        and len(shown) + sum(reason is not None for reason in depth) == len(depth)
    )


def test_every_field_of_the_description(root):
    path, before = root / "meta/info.json", files_of(root)
    clean = json.loads(path.read_text())
    kept, wrong = before.pop("meta/info.json"), []
    try:
        for place in places(clean):
            if place[0] == "features" and len(place) > 1 and clean["codebase_version"] == "v2.1":
                continue  # entries are the same in both versions
            value = clean
            for key in place:
                value = value[key]
            for other in (ABSENT, *WRONG, *contradictions(value)):
                write_json(path, changed(clean, place, other))
                try:
                    right = is_right(LeRobotDataset(root, action_horizon=2))
                except DatasetError as error:
                    named = place[-1] if place[0] != "features" or len(place) < 2 else place[1]
                    right = named in str(error)
                if not right:
                    wrong.append((place, other))
    finally:
        path.write_bytes(kept[1])
    assert wrong == []
    after = files_of(root)
    del after["meta/info.json"]
    assert after == before


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["{episode_index}", "{a.b}", "{episode_index:99999999999}", "../x", "\0", "\ud800"]),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=6), below, max_size=4),
    max_leaves=8,
)  # fmt: skip


@fuzz(examples=60)
@given(st.data())
def test_fuzz_a_description_opens_right_or_is_refused(root, data):
    path = root / "meta/info.json"
    kept = path.read_bytes()
    clean = json.loads(kept)
    info = clean
    for place in data.draw(st.lists(st.sampled_from(list(places(clean))), min_size=1, max_size=2)):
        try:
            info = changed(info, place, data.draw(json_values))
        except (KeyError, TypeError):
            continue  # the first change has taken it away
    try:
        write_json(path, info)
        dataset = LeRobotDataset(root, action_horizon=2, cameras=None)
        assert np.isfinite(dataset.low_dim(dataset.state_key)).all()
        assert is_right(dataset)
    except VlaError:
        pass  # any other exception fails
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (["x", "y"], (2,), ("x", "y")),
        ({"motors": ["x", "y"]}, (2,), ("x", "y")),
        ({"left": ["x"], "right": {"arm": ["y"], "hand": [["z"]]}}, (3,), ("x", "y", "z")),
        ({"delta_y": 1, "delta_x": 0}, (2,), ("delta_x", "delta_y")),
        ({"delta_y": 1.0, "delta_x": 0.0}, (2,), ("delta_x", "delta_y")),
        ({"delta_y": "1", "delta_x": "0"}, (2,), ("delta_x", "delta_y")),
        ({"0": "x", "1": "y"}, (2,), ("x", "y")),
        ([["x", "y"]], (2,), ("x", "y")),
        ([["x"], "y"], (2,), ("x", "y")),
        ([0, 1], (2,), ("0", "1")),
        ("grip", (1,), ("grip",)),
        (["r", "g", "b", "a"], (2, 2), ("r", "g", "b", "a")),
        (None, (2,), None),
        ([], (2,), None),
    ],
)
def test_names_in_every_form(names, shape, expected, caplog):
    assert fields.dimension_names("action", names, shape, f"test of {names}") == expected
    assert caplog.text == ""


@pytest.mark.parametrize(
    "names",
    [
        ["x"],
        ["x", "y", "z"],
        {"x": 0, "y": 2},
        {"x": 0, "y": 0},
        {"x": 0.5, "y": 1},
        {"x": float("nan"), "y": 1},
        {"x": "1", "y": "2"},
        {"x": 0},
        "xy",
        [None, None],
        {"a": None},
        7,
    ],
)
def test_names_that_do_not_fit_are_left_out_and_said(names, caplog):
    for _ in range(2):
        assert fields.dimension_names("action", names, (2,), f"test of {names}") is None
    assert caplog.text.count("names for 2 dimensions of 'action': they are left out") == 1


def test_names_of_the_gamepad_open(root):
    def rename(info):
        info["features"]["action"]["names"] = {"delta_z": 2, "delta_x": 0, "delta_y": 1}

    kept = (root / "meta/info.json").read_bytes()
    edit_info(root, rename)
    dataset = LeRobotDataset(root, action_horizon=2)
    (root / "meta/info.json").write_bytes(kept)
    assert dataset.action_feature.names == ("delta_x", "delta_y", "delta_z")


@pytest.mark.parametrize(
    "template",
    [
        "a/{y}",
        "a/{x:q}",
        "a/{",
        "{x.real}",
        "{x!r}",
        "{x:99999999999d}",
        "/a/{x}",
        "../{x}",
        "a\0{x}",
        "\ud800",
        "",
        "a" * 300,
    ],
)
def test_templates_that_lead_nowhere(template):
    with pytest.raises(DatasetError, match=r"meta/info.json: data_path"):
        fields.fill_template(template, "data_path", x=7)


@pytest.mark.parametrize("name", ["episodes", "tasks"])
def test_every_field_of_the_lists(tmp_path, name):
    """Episodes and tasks of v2.1: right values, or an error that names the field."""
    root = make_dataset(tmp_path / "x", "v2.1", episodes=2, length=N, cameras=[TOP])
    path, wrong = root / f"meta/{name}.jsonl", []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for field in rows[1]:
        for other in (ABSENT, *WRONG, *contradictions(rows[1][field])):
            write_jsonl(path, [rows[0], changed(rows[1], (field,), other)])
            try:
                dataset = LeRobotDataset(root, action_horizon=2)
                right = is_right(dataset) and dataset.episodes[1].tasks == (task_of(1),)
                right = right or (field == "task" and dataset[N]["task"] == other)  # nothing contradicts it
            except DatasetError as error:
                right = field in str(error) or "lists episode 0 twice" in str(error)
            if not right:
                wrong.append((field, other))
    assert wrong == []
