"""Arguments of another kind than documented are refused in one sentence, wherever a policy is opened."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import vla
from tests.checkpoints.test_damage import chunk_of
from tests.folders import contents_of
from tests.policies.conftest import make_robot_policy
from vla.errors import ConfigError, ObservationError, VlaError, WeightsError
from vla.policies.robot import RobotPolicy
from vla.serve.chunking import RecedingHorizon
from vla.transforms.robots import load_robot
from vla.types import as_device

IMAGE = np.zeros((28, 28, 3), np.uint8)
BLIND = {"observation.state": np.zeros(3), "task": "left"}
SEEN = {**BLIND, "observation.images.top": IMAGE}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = tmp_path_factory.mktemp("policy") / "policy"
    make_robot_policy(num_kv_heads=1).save_pretrained(made)
    return made


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "policy"))


@pytest.fixture(scope="module")
def robot(saved):
    return vla.load(saved)


@pytest.mark.parametrize("given", [None, 5, b"x", ["a"], 1.5, {}, True, "", "a\0b", "x" * 5000])
def test_what_names_no_checkpoint_is_refused(given):
    for opened in (vla.load, vla.AutoPolicy.from_pretrained):
        with pytest.raises(WeightsError, match=r"short name of `vla info known`"):
            opened(given)


@pytest.mark.parametrize("given", [5, b"x", ["a"], 1.5, {}])
def test_what_names_no_robot_is_refused(saved, given):
    for opened in (load_robot, lambda one: vla.load(saved, robot=one)):
        with pytest.raises(ConfigError, match=f"described by a file.*got the {type(given).__name__}"):
            opened(given)
    with pytest.raises(ConfigError, match=r"described by a file.*got the NoneType"):
        load_robot(None)


@pytest.mark.parametrize("given", ["runs/mine", None, 5, {}, torch.nn.Linear(1, 1)])
def test_only_a_policy_becomes_a_robot_policy(given):
    with pytest.raises(ConfigError, match=rf"takes a policy.*got a {type(given).__name__}.*vla\.load"):
        RobotPolicy(given)


def test_a_robot_policy_is_no_policy(robot):
    with pytest.raises(ConfigError, match="got a RobotPolicy"):
        RobotPolicy(robot)


@pytest.mark.parametrize("execute", [2.5, 2.0, "3", None, True, [1], np.float32(1)])
def test_execute_is_a_whole_number(robot, execute):
    with pytest.raises(ConfigError, match="execute must be a whole number"):
        RecedingHorizon(robot, execute)


@pytest.mark.parametrize("execute", [2, np.int64(2), torch.tensor(2)])
def test_whole_numbers_of_every_kind_are_taken(robot, execute):
    assert RecedingHorizon(robot, execute).act(SEEN).shape == (2,)


def test_a_bare_network_executes_nothing(robot):
    for given in (robot.policy, None, "x"):
        with pytest.raises(ConfigError, match=f"got a {type(given).__name__}, which has no infer"):
            RecedingHorizon(given, 2)


def test_no_image_is_an_observation_error_that_names_the_observation(robot):
    with pytest.raises(ObservationError, match=r"^The sample holds no image"):
        robot.infer(BLIND)
    with pytest.raises(ObservationError, match=r"^Observation 2 of 3: The sample holds no image"):
        robot.infer_batch([SEEN, BLIND, SEEN])


def test_noise_of_another_width_is_an_observation_error(robot):
    for width in (2, 7, 9):
        with pytest.raises(ObservationError, match=rf"m=8\], got \[1, 6, {width}\]"):
            robot.infer(SEEN, noise=np.zeros((6, width)))
        with pytest.raises(ObservationError, match=rf"m=8\], got \[2, 6, {width}\]"):
            robot.infer_batch([SEEN, SEEN], noise=np.zeros((2, 6, width)))


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_a_device_that_is_not_there_is_called_by_its_kind(kind):
    if getattr(torch, kind).is_available():
        pytest.skip(f"this machine has {kind}")
    with pytest.raises(ConfigError, match=f"no device of the kind '{kind}'") as caught:
        as_device(kind)
    assert "CUDA" not in str(caught.value)


def refused(folder, said):
    before = contents_of(folder)
    with pytest.raises(VlaError, match=said) as caught:
        vla.load(folder)
    assert contents_of(folder) == before
    return str(caught.value)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "pipeline.json", "statistics.json"])
def test_a_link_to_nothing_is_called_that(folder, file):
    (folder / file).unlink()
    (folder / file).symlink_to("gone")
    refused(folder, rf"{file} is a link to nothing \(gone\)")


def test_the_state_of_a_training_is_not_taken_for_weights(folder):
    (folder / "model.safetensors").unlink()
    for name in ("training_state.pt", "optimizer.pt", "rng_state_0.pth"):
        (folder / name).write_bytes(b"x")
    assert "pickle" not in refused(folder, "holds no weights: no model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    refused(folder, r"pickled weights \(pytorch_model.bin\)")


@pytest.mark.parametrize("value", ["foo", "pi_0", 3, None, ""])
def test_a_config_of_another_kind_is_not_called_missing(folder, value):
    text = (folder / "config.json").read_text().replace('"vla_pi0"', json.dumps(value))
    (folder / "config.json").write_text(text)
    assert "missing" not in refused(folder, f"config.json has model_type {value!r}")
    (folder / "config.json").unlink()
    refused(folder, r"config\.json is missing")


def test_a_runs_folder_stands_for_its_checkpoint_as_a_config_too(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run" / "checkpoints" / "step-000002")
    policy = vla.AutoPolicy.from_pretrained(saved, config=tmp_path / "run")
    assert (chunk_of(RobotPolicy(policy)) == chunk_of(vla.load(saved))).all()
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(VlaError, match="no complete checkpoint yet"):
        vla.AutoPolicy.from_pretrained(saved, config=str(tmp_path / "empty"))
