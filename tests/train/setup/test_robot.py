"""`data.robot`: what a robot file supplies to a recipe, what outranks it, and what does not fit."""

import json
import logging
import shutil

import pytest
import torch
import yaml

from tests.data.make import make_dataset
from tests.folders import unchanged
from vla.data import LeRobotDataset
from vla.errors import ConfigError
from vla.policies.robot import RobotPolicy
from vla.train.loop import train
from vla.train.recipe_file import load_recipe
from vla.train.setup.robot import robot_of, with_robot
from vla.train.setup.run import set_up
from vla.transforms import FlipSigns, Normalize, Pipeline

ROBOT = {
    "name": "arm",
    "frequency": 10,
    "cameras": {
        "base": {"robot": "front", "dataset": "observation.images.top"},
        "wrist": {"robot": "hand", "dataset": "observation.images.wrist", "wrist": True},
        "other": None,
    },
    "state": {
        "key": "observation.state",
        "dimensions": [{"kind": "joint", "unit": "rad", "names": ["s0", "s1", "s2"]}],
        "flip": ["s0"],
    },
    "action": {
        "key": "action",
        "dimensions": [{"kind": "joint", "unit": "rad", "names": ["a0", "a1", "a2"]}],
        "scales": {"a2": {"map": "linear", "robot": [0, 1], "policy": [1, 0]}},
        "delta": [2, -1],
    },
    "sources": ["made up"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", episodes=2, length=10)


@pytest.fixture
def make(data, tmp_path):
    """A recipe with ROBOT, the file changed by `robot`."""

    def make(*overrides, robot=None, output="run"):
        (tmp_path / "arm.yaml").write_text(yaml.safe_dump({**ROBOT, **(robot or {})}))
        fixed = [f"data.path={data}", f"data.robot={tmp_path / 'arm.yaml'}", f"output={tmp_path / output}"]
        small = [
            "policy.preset=tiny",
            "data.num_workers=0",
            "data.validation_fraction=0",
            "data.augment=false",
        ]
        run = ["train.batch_size=4", "train.steps=2", "train.warmup_steps=1", "train.precision=no"]
        quiet = ["train.tensorboard=false", f"train.threads={torch.get_num_threads()}"]
        return load_recipe(None, [*fixed, *small, *run, *quiet, *overrides])

    return make


def test_the_robot_supplies_what_the_recipe_leaves_open(make):
    settings = with_robot(make()).data
    assert settings.cameras == {"base": "observation.images.top", "wrist": "observation.images.wrist"}
    assert settings.wrist_cameras == ("wrist",)
    assert settings.delta_mask == (True, True, False)
    assert (settings.state_key, settings.action_key) == ("observation.state", "action")


def test_columns_come_from_the_robot_unless_named(make):
    robot = {"state": {**ROBOT["state"], "key": "state"}, "action": {**ROBOT["action"], "key": "actions"}}
    settings = with_robot(make("data.action_key=action", robot=robot)).data
    assert (settings.state_key, settings.action_key) == ("state", "action")


def test_the_recipe_outranks_the_robot(make):
    settings = with_robot(
        make(
            "data.cameras={base: observation.images.wrist}",
            "data.wrist_cameras=[base]",
            "data.delta_mask=[false,true]",
        )
    ).data
    assert settings.cameras == {"base": "observation.images.wrist"}
    assert settings.wrist_cameras == ("base",)
    assert settings.delta_mask == (False, True)
    only_base = with_robot(make("data.cameras={base: observation.images.wrist}")).data
    assert only_base.wrist_cameras == ()


def test_twice_is_once_and_the_record_reads_back(make, tmp_path):
    recipe = with_robot(make())
    assert with_robot(recipe) == recipe
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert with_robot(load_recipe(tmp_path / "recipe.yaml")) == recipe
    without = load_recipe(None, ["data.path=x", "output=y"])
    assert with_robot(without) is without


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.cameras={other: x}"], "'other'.*the robot has no camera for it"),
        (["data.cameras={bse: x}"], r"slot 'bse'.*fills base, wrist.*'base'"),
        (["data.wrist_cameras=[side]"], r"wrist_cameras \['side'\]"),
        (["data.delta_mask=[true,true,true,true]"], "4 flags, but arm .*3 action dimensions: a0, a1, a2"),
        (["data.robot=nowhere.yaml"], r"no robot file nowhere\.yaml"),
    ],
)
def test_what_the_robot_has_not_got(make, overrides, said):
    with pytest.raises(ConfigError, match=said):
        with_robot(make(*overrides))


def wider(vector, names):
    return {**vector, "dimensions": [{"kind": "joint", "unit": "rad", "names": names}]}


def test_the_dataset_must_be_of_the_robot(make, data):
    dataset = LeRobotDataset(data, action_horizon=2)
    state, action = ROBOT["state"], ROBOT["action"]
    with pytest.raises(ConfigError, match=r"arm .* has 4 state dimensions.*'observation.state' has 3"):
        robot_of(make(robot={"state": wider(state, ["s0", "s1", "s2", "s3"])}).data, dataset)
    with pytest.raises(ConfigError, match=r"4 action dimensions, but the dataset's 'action' has 3"):
        robot_of(make(robot={"action": wider(action, ["a0", "a1", "a2", "a3"])}).data, dataset)
    with pytest.raises(ConfigError, match=r"another order: s0, s1, s2\. .* says s2, s0, s1"):
        robot_of(make(robot={"state": wider(state, ["s2", "s0", "s1"])}).data, dataset)
    other_names = make(robot={"action": {**wider(action, ["x", "y", "z"]), "scales": {}}}).data
    assert robot_of(other_names, dataset).action_names == ("x", "y", "z")


def test_another_rate_is_a_warning(make, data, caplog):
    dataset = LeRobotDataset(data, action_horizon=2)
    with caplog.at_level(logging.WARNING):
        robot_of(make().data, dataset)
        assert not caplog.records
        robot_of(make(robot={"frequency": 50}).data, dataset)
    assert "arm runs at 50 Hz" in caplog.text
    assert "10 frames per second" in caplog.text


@pytest.mark.parametrize("delta", [["s0"], [-1, 1]])
def test_a_robot_files_delta_goes_by_the_names(make, delta, tmp_path):
    action = {**wider(ROBOT["action"], ["s2", "s0", "s1"]), "scales": {}, "delta": delta}
    recipe = make(robot={"action": action})
    with unchanged(tmp_path), pytest.raises(ConfigError, match=r"'s0' \(dimension 1\).*'s1'.*action\.delta"):
        train(recipe)


def test_a_recipes_delta_mask_goes_by_the_robots_names(make, tmp_path):
    action = {**wider(ROBOT["action"], ["s2", "s0", "s1"]), "scales": {}, "delta": []}
    with unchanged(tmp_path / "run"):
        recipe = make("data.delta_mask=[false,true]", robot={"action": action})
        with pytest.raises(ConfigError, match=r"'s0' \(dimension 1\).*'s1'.*names in .*arm\.yaml"):
            train(recipe)


def test_a_delta_mask_goes_by_the_datasets_names(make, data, tmp_path):
    turned = shutil.copytree(data, tmp_path / "turned")
    info = json.loads((turned / "meta" / "info.json").read_text())
    info["features"]["action"]["names"] = ["s2", "s0", "s1"]
    (turned / "meta" / "info.json").write_text(json.dumps(info))
    recipe = make(f"data.path={turned}", "data.robot=null", "data.delta_mask=[false,true]")
    with unchanged(tmp_path), pytest.raises(ConfigError, match=r"'s0' \(dimension 1\).*'s1'.*turned"):
        train(recipe)


def test_a_delta_to_another_kind_or_unit_is_one_warning(make, data, caplog):
    dataset = LeRobotDataset(data, action_horizon=2)
    groups = [
        {"kind": "joint", "unit": "deg", "names": ["a0"]},
        {"kind": "gripper", "unit": "rad", "names": ["a1"]},
        {"kind": "joint", "unit": " Rad", "names": ["a2"]},
    ]
    action = {**ROBOT["action"], "dimensions": groups, "delta": [3]}
    robot_of(make(robot={"action": action}).data, dataset)
    (record,) = caplog.records
    assert "'a0' (joint, deg) to 's0' (joint, rad); 'a1' (gripper, rad) to 's1'" in record.message
    assert "'a2'" not in record.message
    caplog.clear()
    robot_of(make("data.delta_mask=[false,false,true]", robot={"action": action}).data, dataset)
    assert not caplog.records


def test_statistics_are_counted_as_normalisation_meets_them(make, data):
    job = set_up(make("policy.config.action_horizon=1"), None, rank=0, processes=1)
    counted = job.policy.pipeline.find(Normalize).statistics
    dataset = LeRobotDataset(data, action_horizon=1)
    state, action = (torch.from_numpy(dataset.low_dim(key).copy()) for key in ("observation.state", "action"))
    flipped = state * torch.tensor([-1.0, 1.0, 1.0])
    chunk = torch.cat([(action - flipped)[:, :2], 1 - action[:, 2:]], dim=1)
    torch.testing.assert_close(torch.tensor(counted.features["state"].mean), flipped.mean(0))
    torch.testing.assert_close(torch.tensor(counted.features["actions"].mean), chunk.mean(0))
    assert "after flip_signs, linear_map, delta_actions" in counted.convention.replace("rename_cameras, ", "")


def test_a_trained_policy_brings_its_robot_along_and_resumes(make, tmp_path):
    recipe = make()
    first = train(recipe, progress=False)
    pipeline = Pipeline.load(first.checkpoint)
    assert pipeline.find(FlipSigns) == FlipSigns(state=(0,))
    assert list(load_recipe(first.checkpoint / "recipe.yaml").data.cameras) == ["base", "wrist"]
    longer = make("train.steps=3")
    assert train(longer, resume=True, progress=False).step == 3


def test_acting_undoes_what_training_did(make):
    """A policy that predicts the mean chunk: in robot units it is the mean of the recorded actions."""
    job = set_up(make("policy.config.action_horizon=1", "data.delta_mask=[]"), None, rank=0, processes=1)
    policy = job.policy
    policy.sample_actions = lambda **_: torch.zeros(1, 1, policy.config.max_action_dim)
    item = job.robots[None].dataset[0]
    observation = {
        "observation.state": item["observation.state"].numpy(),
        "observation.images.base": item["observation.images.top"].permute(1, 2, 0).numpy(),
        "task": "x",
    }
    actions = RobotPolicy(policy).infer(observation)["actions"][0]
    recorded = job.robots[None].dataset.low_dim("action").mean(0)
    assert actions == pytest.approx(recorded, abs=1e-5)
