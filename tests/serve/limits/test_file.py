"""Where limits come from: the dataset, the robot file, the user."""

import json

import numpy as np
import pytest

from tests.policies.conftest import make_robot_policy
from tests.serve.robots import of_robot, tiny
from vla.errors import ConfigError
from vla.interface import RobotInterface, VectorInterface
from vla.policies.robot import RobotPolicy
from vla.serve.limits.file import limits_of, shape_of
from vla.transforms import Pipeline
from vla.transforms.robots import load_robot


@pytest.fixture(scope="module")
def policy():
    return tiny()


def test_the_dataset_s_range_and_a_tenth(policy):
    # Actions are counted in [-1.5, 1.5] and [-3, 3]; the first is relative to a state in [-3, 3].
    held = limits_of(policy)
    assert held.action.high.tolist() == pytest.approx([4.5 * 1.2, 3 * 1.2])
    assert held.action.low.tolist() == pytest.approx([-4.5 * 1.2, -3 * 1.2])
    assert held.action.relative == (True, False)
    assert not np.isfinite(held.action.step).any()
    assert not np.isfinite(held.state.high).any()
    assert held.action.names == ("action_0", "action_1")


def test_the_robot_file_s_ranges_and_clip():
    held = limits_of(of_robot("droid"), load_robot("droid"))
    assert held.action.high.tolist() == [1.0] * 8
    assert held.action.low.tolist() == [-1.0] * 7 + [0.0]
    assert "droid.yaml" in held.action.source


@pytest.mark.parametrize("form", ["file", "json", "mapping"])
def test_the_user_s_file_outranks_both(policy, tmp_path, form):
    values = {
        "widen": 0,
        "action": {"range": {"action_1": [-1, 2]}, "step": {"action_0": 0.5}},
        "state": {"widen": 0.5, "range": {"state_2": None}},
    }
    given = values
    if form == "file":
        given = tmp_path / "limits.yaml"
        given.write_text(
            "widen: 0\naction: {range: {action_1: [-1, 2]}, step: {action_0: 0.5}}\n"
            "state: {widen: 0.5, range: {state_2: null}}\n"
        )
    elif form == "json":
        given = tmp_path / "limits.json"
        given.write_text(json.dumps(values))
    held = limits_of(policy, None, given)
    assert held.action.high.tolist() == pytest.approx([4.5, 2], rel=1e-5)
    assert held.action.low.tolist() == pytest.approx([-4.5, -1], rel=1e-5)
    assert held.action.step.tolist() == [0.5, np.inf]
    assert held.state.high.tolist() == [6.0, 12.0, np.inf]
    assert "action_1 as the user says" in held.action.source


def test_limits_can_be_lifted(policy):
    held = limits_of(policy, None, {"widen": None, "action": {"step": 2}})
    assert not np.isfinite(held.action.high).any()
    assert held.action.step.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"actions": {}}, "unknown key 'actions'. Did you mean 'action'"),
        ({"action": {"rang": {}}}, "action: unknown key 'rang'. Did you mean 'range'"),
        ({"action": 3}, "action must be a mapping"),
        ({"action": {"range": {"action_3": [0, 1]}}}, "no dimension 'action_3', only action_0, action_1"),
        ({"action": {"range": {"action_1": [1, 0]}}}, r"action_1 must be the lower and then"),
        ({"action": {"range": {"action_1": 1}}}, r"action_1 must be \[low, high\] or null, got 1"),
        ({"action": {"range": {"action_1": [0, "x"]}}}, "must be a finite number, got 'x'"),
        ({"action": {"range": [0, 1]}}, "must map dimensions"),
        ({"action": {"step": 0}}, "must be a change above 0"),
        ({"state": {"widen": -1}}, "a share of the range"),
        ({"widen": float("nan")}, "must be a finite number"),
    ],
)
def test_what_is_not_a_limit(policy, values, said):
    with pytest.raises(ConfigError, match=said):
        limits_of(policy, None, values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"action": {"range": {"action_1": [10, 11]}}},
            r"limits of action 'action_1' are \[10, 11\], .* values in \[-3, 3\] \(the dataset's range;",
        ),
        ({"widen": None, "action": {"range": {"action_0": [-9, -5]}}}, r"'action_0' are \[-9, -5\], .*4.5\]"),
        ({"state": {"range": {"state_1": [7, 8]}}}, r"limits of state 'state_1' are \[7, 8\], .*\[-6, 6\]"),
    ],
)
def test_a_range_outside_the_dataset_s_is_refused(policy, values, said):
    with pytest.raises(ConfigError, match=said):
        limits_of(policy, None, values)


def test_a_range_that_meets_the_dataset_s_is_not(policy):
    ranges = {"action_0": [-1000, 1000], "action_1": [2.9, 50]}
    held = limits_of(policy, None, {"action": {"range": ranges}, "state": {"range": {"state_0": [0.5, 99]}}})
    assert (held.action.low.tolist(), held.action.high.tolist()) == ([-1000, 2.9], [1000, 50])
    assert (held.state.low[0], held.state.high[0]) == (0.5, 99)


def test_files_that_are_not_there_or_damaged(policy, tmp_path):
    with pytest.raises(ConfigError, match="no file of limits"):
        limits_of(policy, None, tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"bad.yaml cannot be read"):
        limits_of(policy, None, tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match=r"list.yaml must be a mapping"):
        limits_of(policy, None, tmp_path / "list.yaml")


def test_a_file_of_another_robot(policy):
    with pytest.raises(ConfigError, match="describes state of 8 values, the checkpoint's are of 3"):
        limits_of(policy, load_robot("libero"))


def test_names_are_the_recorded_ones():
    policy = make_robot_policy()
    interface = RobotInterface({}, VectorInterface("xyz"), VectorInterface("uv"), 20.0)
    policy.pipeline = Pipeline(policy.pipeline.transforms, interface)
    assert shape_of(RobotPolicy(policy)).action == ("u", "v")
