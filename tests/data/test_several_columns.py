"""State and actions in several columns, through everything that takes a key."""

import json

import numpy as np
import pytest
import torch
import yaml

from tests.data.conftest import LENGTHS
from tests.data.make import CAMERAS, low_dim, make_dataset, split_columns
from tests.folders import files_of
from vla.cli import main
from vla.data import LeRobotDataset
from vla.data.interface import interface_of
from vla.data.sample import to_canonical
from vla.data.stats import compute_statistics
from vla.data.stats_warnings import warn_of_statistics
from vla.data.writing.writer import LeRobotWriter
from vla.errors import ConfigError, DatasetError
from vla.train.recipe_file import load_recipe
from vla.train.setup.members import member_recipes, open_members
from vla.train.setup.robot import check_robot, with_robot
from vla.transforms.robots import load_robot
from vla.types import Window

STATE = ("observation.state.arm", "observation.state.gripper")
ACTION = ("action.arm", "action.gripper")
KEYS = {"state_key": STATE, "action_key": ACTION}
H = 4


@pytest.fixture(scope="module", params=["v3.0", "v2.1"])
def parts(request, tmp_path_factory):
    """A tiny dataset whose state and action of 3 lie in columns of 2 and 1. Read only."""
    root = tmp_path_factory.mktemp("parts") / "x"
    make_dataset(root, request.param, length=LENGTHS, episodes=len(LENGTHS), cameras=CAMERAS[:1])
    split_columns(
        root,
        {
            "observation.state": dict(zip(STATE, (2, 1), strict=True)),
            "action": dict(zip(ACTION, (2, 1), strict=True)),
        },
    )
    return root


def test_items_hold_the_columns_joined_in_order(parts):
    before = files_of(parts)
    dataset = LeRobotDataset(parts, action_horizon=H, **KEYS)
    assert (dataset.state_dim, dataset.action_dim) == (3, 3)
    assert (dataset.state_columns, dataset.action_columns) == (STATE, ACTION)
    assert dataset.state_feature.names == ("s0", "s1", "gripper")
    at = 0
    for e, n in enumerate(LENGTHS):
        state, action = low_dim(e, n, 3, 3)
        for i in range(n):
            item = dataset[at]
            assert np.array_equal(item["observation.state"], state[i])
            assert np.array_equal(item["observation.state.arm"], state[i, :2])
            assert np.array_equal(item["action"], [action[min(i + k, n - 1)] for k in range(H)])
            assert item["action_is_pad"].tolist() == [i + k >= n for k in range(H)]
            at += 1
    assert np.array_equal(dataset.low_dim(dataset.state_key)[:5], low_dim(0, 5, 3, 3)[0])
    assert files_of(parts) == before


def test_the_order_is_the_callers(parts):
    turned = LeRobotDataset(parts, action_horizon=H, state_key=list(STATE[::-1]), action_key=ACTION[1])
    state, _ = low_dim(0, LENGTHS[0], 3, 3)
    assert np.array_equal(turned[2]["observation.state"], state[2][[2, 0, 1]])
    assert turned.action_key == "action.gripper"
    assert turned[0]["action.gripper"].shape == (H, 1)
    assert turned.state_feature.names == ("gripper", "s0", "s1")
    assert turned.fingerprint != LeRobotDataset(parts, action_horizon=H, **KEYS).fingerprint


def test_a_past_of_joined_states(parts):
    dataset = LeRobotDataset(parts, window=Window(H, state=(-1, 0)), **KEYS)
    state = low_dim(0, LENGTHS[0], 3, 3)[0]
    assert np.array_equal(dataset[2]["observation.state"], state[1:3])
    assert dataset[0]["observation.state_is_pad"].tolist() == [True, False]


def test_sample_and_interface(parts):
    dataset = LeRobotDataset(parts, action_horizon=H, **KEYS)
    sample = to_canonical(dataset[3], {"top": CAMERAS[0]}, **KEYS)
    assert torch.equal(sample["state"], dataset[3]["observation.state"])
    assert torch.equal(sample["actions"], dataset[3]["action"])
    interface = interface_of(dataset.info, STATE, ACTION, {})
    assert interface.state.names == ("s0", "s1", "gripper")
    assert interface.action.names == ("a0", "a1", "gripper")


def test_statistics_are_those_of_one_column(parts, tiny_datasets):
    joined = compute_statistics(LeRobotDataset(parts, action_horizon=H, cameras=[], **KEYS))
    whole = compute_statistics(LeRobotDataset(tiny_datasets["v3.0"], action_horizon=H, cameras=[]))
    assert joined.features == whole.features
    assert joined.source != whole.source
    frozen = LeRobotDataset(parts, action_horizon=1, episodes=[0], cameras=[], **KEYS)
    frozen._states[:, 2] = 1.0
    told = warn_of_statistics(compute_statistics(frozen), frozen)
    assert any("gripper" in warning.message and warning.feature == "state" for warning in told)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"state_key": []}, ConfigError, "names no column"),
        ({"state_key": [STATE[0], STATE[0]]}, ConfigError, "names a column twice"),
        ({"state_key": [STATE[0], 3]}, ConfigError, "or by a list of columns"),
        ({"state_key": None}, ConfigError, "or by a list of columns"),
        ({"state_key": ""}, ConfigError, "or by a list of columns"),
        ({"state_key": [STATE[0], "observation.state.grip"]}, DatasetError, "state.grip' for.*Did you"),
        ({"state_key": [STATE[0], CAMERAS[0]]}, DatasetError, "cannot be the state: it is video"),
        ({"state_key": "observation.state"}, DatasetError, r"is joined: \['observation.state.arm', 'obs"),
        ({"state_key": ACTION[0], "action_key": ACTION[0]}, ConfigError, "both be called 'action.arm'"),
    ],
)  # fmt: skip
def test_keys_that_cannot_be(parts, keys, error, message):
    with pytest.raises(error, match=message):
        LeRobotDataset(parts, action_horizon=H, **{**KEYS, **keys})


def test_one_name_in_two_columns_gets_its_columns(tmp_path):
    names = {"observation.left": ["x", "grip"], "observation.right": ["x", "grip"]}
    with LeRobotWriter(tmp_path / "x", 10, cameras={}, state_names=names, action_names=["x"]) as out:
        row = {"observation.left": [0, 1], "observation.right": [2, 3], "action": [4]}
        out.add_frame(row)
        out.save_episode("go")
    dataset = LeRobotDataset(tmp_path / "x", action_horizon=1, state_key=list(names))
    assert dataset.state_feature.names == ("left.x", "left.grip", "right.x", "right.grip")
    assert dataset[0]["observation.state"].tolist() == [0, 1, 2, 3]
    assert set(json.loads((tmp_path / "x/meta/stats.json").read_text())) >= set(names)


def test_writer_refuses_a_column_of_both(tmp_path):
    both = {"shared": ["x"]}
    with pytest.raises(ConfigError, match=r"used twice: \['shared'\]"):
        LeRobotWriter(tmp_path / "x", 10, cameras={}, state_names=both, action_names=both)
    assert not list(tmp_path.iterdir())


def test_recipe_and_mixture(parts):
    listed = [
        f"data.path={parts}",
        "output=o",
        "data.validation_fraction=0",
        *(f"data.{k}=[{','.join(v)}]" for k, v in KEYS.items()),
    ]
    recipe = load_recipe(None, listed)
    assert (recipe.data.state_key, recipe.data.action_key) == (STATE, ACTION)
    assert open_members(recipe, Window(H))[0].split.dataset[0]["observation.state"].shape == (3,)
    same = load_recipe(None, ["data.path=x", "output=o"])
    assert same.data.state_key == "observation.state"
    member = {"path": str(parts), "weight": 1, **{key: list(value) for key, value in KEYS.items()}}
    mixed = load_recipe(
        None, [f"data.mixture=[{json.dumps(member)}]", "output=o", "data.validation_fraction=0"]
    )
    (alone,) = member_recipes(mixed).values()
    assert alone.data.action_key == ACTION
    with pytest.raises(ConfigError, match=r"'data.state_key': The list of columns .* names a column twice"):
        load_recipe(None, ["data.path=x", "output=o", "data.state_key=[a,a]"])
    with pytest.raises(
        ConfigError, match=r"'data.state_key': .* or by a list of columns to be joined; got 3"
    ):
        load_recipe(None, ["data.path=x", "output=o", "data.state_key=3"])


def test_recipe_survives_its_file(tmp_path):
    recipe = load_recipe(None, ["data.path=x", "output=o", "data.state_key=[a,b]"])
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "r.yaml") == recipe


def test_on_the_command_line(parts, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    columns = ["--state-key", ",".join(STATE), "--action-key", ",".join(ACTION)]
    assert main(["stats", str(parts), *columns]) == 0
    assert "2 gripper" in capsys.readouterr().out
    assert main(["stats", str(parts)]) == 1
    assert "no 'observation.state' for the state" in capsys.readouterr().err
    assert main(["info", str(parts), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["state_dim"], about["state_columns"], about["action_columns"]) == (3, [*STATE], [*ACTION])


def robot_file(folder, state_key, names=("s0", "s1", "gripper")):
    path = folder / "robot.yaml"
    group = {"kind": "joint", "unit": "rad", "names": list(names)}
    camera = {"robot": "top", "dataset": CAMERAS[0]}
    action = {"key": list(ACTION), "dimensions": [group | {"names": ["a0", "a1", "gripper"]}]}
    about = {"name": "test", "frequency": 10, "cameras": {"top": camera}, "sources": ["here"]}
    path.write_text(
        yaml.safe_dump({**about, "state": {"key": state_key, "dimensions": [group]}, "action": action})
    )
    return path


def test_robot_files_name_columns(parts, tmp_path):
    path = robot_file(tmp_path, list(STATE))
    recipe = with_robot(load_recipe(None, [f"data.path={parts}", "output=o", f"data.robot={path}"]))
    assert (recipe.data.state_key, recipe.data.action_key) == (STATE, ACTION)
    dataset = LeRobotDataset(parts, action_horizon=H, state_key=STATE, action_key=ACTION)
    check_robot(load_robot(path), dataset)
    other = robot_file(tmp_path, list(STATE), ("gripper", "s0", "s1"))
    with pytest.raises(
        ConfigError, match=r"'observation\.state' has the dimensions of test in another order"
    ):
        check_robot(load_robot(other), dataset)
    for wrong, message in (([], "names no column"), ([STATE[0]] * 2, "twice"), (3, "'state.key' is 3")):
        with pytest.raises(ConfigError, match=message):
            load_robot(robot_file(tmp_path, wrong))
