"""The shipped robot files: their facts, their round trips, and a tiny policy trained through each."""

import json
import math

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.make import make_dataset
from tests.rules.source import ROOT
from vla.data import LeRobotDataset
from vla.data.stats import compute_statistics
from vla.policies.pi0 import Pi0Config, Pi0Policy
from vla.policies.robot import RobotPolicy
from vla.train.loop import train
from vla.train.recipe_file import load_recipe
from vla.transforms import (
    DeltaActions,
    FeatureStats,
    Normalize,
    PadDimensions,
    Pipeline,
    ResizeImages,
    Statistics,
    TokenizePrompt,
    train_tokenizer,
)
from vla.transforms.normalize import OPENPI_FORMULA
from vla.transforms.robots import apply_robot, load_robot

FILES = {path.stem: path for path in sorted((ROOT / "recipes" / "robots").glob("*.yaml"))}
ROBOTS = {name: load_robot(path) for name, path in FILES.items()}

FACTS = {
    # name: (state, action, Hz, steps, asset, relative dimensions, slots, wrists)
    "aloha": (14, 14, 50, 25, "trossen", [*range(6), *range(7, 13)], 3, 2),
    "droid": (8, 8, 15, 8, "droid", [], 2, 1),
    "libero": (8, 7, 10, 5, None, [], 2, 1),
    "so101": (6, 6, 30, None, None, list(range(5)), 2, 1),
    "ur5": (7, 7, 20, None, "ur5e", list(range(6)), 2, 1),
    "widowx_bridge": (7, 7, 5, None, None, [], 1, 0),
}

each_robot = pytest.mark.parametrize("robot", ROBOTS.values(), ids=ROBOTS)


def test_every_robot_is_there():
    assert ROBOTS.keys() == FACTS.keys()


@pytest.mark.parametrize("name", FACTS)
def test_facts(name):
    robot = ROBOTS[name]
    assert robot.about.sources
    relative = [dim for dim, flag in enumerate(robot.delta_mask or ()) if flag]
    assert FACTS[name] == (
        robot.state_dim,
        robot.action_dim,
        robot.frequency,
        robot.execution.open_loop_steps,
        robot.asset_id,
        relative,
        len(robot.cameras),
        len(robot.wrist_cameras),
    )


@each_robot
def test_slots_are_those_of_the_published_weights(robot):
    assert set(robot.about.cameras) == set(Pi0Config().cameras)
    assert all("wrist" in slot for slot in robot.wrist_cameras)
    widths = (robot.state_dim, robot.action_dim)
    assert max(widths) <= min(Pi0Config().max_state_dim, Pi0Config().max_action_dim)


def test_droid_s_client_constants():
    assert ROBOTS["droid"].execution.gripper_threshold == 0.5
    assert ROBOTS["droid"].execution.clip == (-1.0, 1.0)


# -- round trips --------------------------------------------------------------------------------------


def random_sample(robot, seed, steps=7, leading=()):
    """A state and a chunk within the robot's physical ranges; pi where the file gives none."""
    generator = torch.Generator().manual_seed(seed)
    sample = {}
    for key, vector, shape in (
        ("state", robot.about.state, leading),
        ("actions", robot.about.action, (*leading, steps)),
    ):
        ranges = [group.range or (-math.pi, math.pi) for group in vector.dimensions for _ in group.names]
        low, high = torch.tensor(ranges).unbind(-1)
        sample[key] = low + (high - low) * torch.rand(*shape, len(ranges), generator=generator)
    return sample


def assert_close(got, want):
    """Equal to a few units in the last place of the largest value on the way."""
    scale = torch.maximum(want.abs().amax(), torch.tensor(1.0))
    assert (got - want).abs().max() <= 8 * torch.finfo(torch.float32).eps * scale


@each_robot
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), leading=st.sampled_from([(), (3,), (2, 3)]))
def test_there_and_back(robot, seed, leading):
    sample = random_sample(robot, seed, leading=leading)
    pipeline = Pipeline(robot.transforms())
    there = pipeline.forward(sample)
    back = pipeline.inverse(there)
    assert_close(back["actions"], sample["actions"])
    assert_close(back["state"], sample["state"])
    for key in ("state", "actions"):
        alone = pipeline.forward({key: sample[key]})[key]
        assert torch.equal(alone, there[key])


@each_robot
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_there_and_back_with_the_delta(robot, seed):
    """As acting does it: the observation's own state is the reference on the way back."""
    sample = random_sample(robot, seed)
    delta = [] if robot.delta_mask is None else [DeltaActions(robot.delta_mask)]
    pipeline = Pipeline([*robot.transforms(), *delta])
    chunk = pipeline.forward(sample)["actions"]
    observation = pipeline.forward({"state": sample["state"]})
    back = pipeline.inverse({**observation, "actions": chunk})
    assert_close(back["actions"], sample["actions"])


@each_robot
def test_pictures_arrive_under_the_slots(robot):
    pipeline = Pipeline(robot.transforms())
    images = {name: torch.full((3, 2, 2), i) for i, name in enumerate(robot.camera_names.values())}
    live = pipeline.forward({"images": images})["images"]
    assert live.keys() == robot.cameras.keys()
    assert {slot: live[slot][0, 0, 0].item() for slot in live} == dict(
        zip(robot.camera_names, range(9), strict=False)
    )
    recorded = dict.fromkeys(robot.cameras, torch.zeros(3, 2, 2))
    assert pipeline.forward({"images": recorded})["images"].keys() == robot.cameras.keys()


@each_robot
def test_saved_and_rebuilt(robot, tmp_path):
    Pipeline(robot.transforms()).save(tmp_path)
    assert Pipeline.load(tmp_path).transforms == tuple(robot.transforms())


# -- ALOHA and LIBERO by hand -------------------------------------------------------------------------

ALOHA_SIGNS = [1, -1, -1, 1, 1, 1, 1, 1, -1, -1, 1, 1, 1, 1]


def aloha_state_gripper(opening):
    """The published map of a measured gripper, in plain arithmetic."""
    finger = 0.01844 + opening * (0.05800 - 0.01844)
    sine = (0.022**2 + finger**2 - 0.036**2) / (2 * 0.022 * finger)
    return (math.asin(min(max(sine, -1.0), 1.0)) - 0.5476) / (1.6296 - 0.5476)


def aloha_action_gripper(opening):
    """The published map of a commanded gripper on its way into training."""
    return opening * (1.4910 + 0.6213) - 0.6213 - 0.5476


def test_aloha_against_the_published_formulas():
    sample = random_sample(ROBOTS["aloha"], seed=1)
    there = Pipeline(ROBOTS["aloha"].transforms()).forward(sample)
    for dim in range(14):
        state, actions = sample["state"][dim].item(), sample["actions"][:, dim].tolist()
        if dim in (6, 13):
            wanted, chunk = aloha_state_gripper(state), [aloha_action_gripper(action) for action in actions]
        else:
            wanted, chunk = ALOHA_SIGNS[dim] * state, [ALOHA_SIGNS[dim] * action for action in actions]
        assert there["state"][dim].item() == pytest.approx(wanted, abs=1e-6)
        assert there["actions"][:, dim].tolist() == pytest.approx(chunk, abs=1e-6)


def test_aloha_numbers():
    """Closed: L = 0.01844 m, the sine -0.5817. Open: horn and arm in line, a right angle."""
    pipeline = Pipeline(ROBOTS["aloha"].transforms())
    states = torch.zeros(2, 14)
    states[1] = 1.0
    grippers = pipeline.forward({"state": states})["state"][:, [6, 13]]
    closed = (math.asin(-0.000471966 / 0.00081136) - 0.5476) / 1.082  # 0.000484 + 0.000340034 - 0.001296
    assert grippers[0].tolist() == pytest.approx([closed, closed], abs=1e-5)
    assert grippers[1].tolist() == pytest.approx([(math.pi / 2 - 0.5476) / 1.082] * 2, abs=1e-6)
    out = pipeline.inverse({"actions": torch.tensor([[0.0] * 14, [0.9434] * 14])})["actions"]
    assert out[0, 6].item() == pytest.approx((0 + 0.5476 + 0.6213) / (1.4910 + 0.6213), abs=1e-6)
    assert out[1, 13].item() == pytest.approx(1.0, abs=1e-6)
    assert out[1, :4].tolist() == pytest.approx([0.9434, -0.9434, -0.9434, 0.9434])


def test_aloha_s_two_gripper_maps_are_not_inverses_of_each_other():
    """Near enough to look like a mistake that can be tidied up: a closed gripper would come back 4 % open."""
    pipeline = Pipeline(ROBOTS["aloha"].transforms())
    measured = pipeline.forward({"state": torch.zeros(14)})["state"]
    commanded = pipeline.inverse({"actions": measured[None]})["actions"][0, 6].item()
    wanted = (aloha_state_gripper(0.0) + 0.5476 + 0.6213) / (1.4910 + 0.6213)
    assert commanded == pytest.approx(wanted, abs=1e-6)
    assert 0.03 < commanded < 0.06


def test_libero_s_simulator_is_upside_down_and_its_dataset_is_not():
    pipeline = Pipeline(ROBOTS["libero"].transforms())
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    live = pipeline.forward({"images": {"agentview_image": image, "robot0_eye_in_hand_image": image}})
    recorded = pipeline.forward({"images": {"base_0_rgb": image, "left_wrist_0_rgb": image}})
    for slot in ROBOTS["libero"].cameras:
        assert torch.equal(live["images"][slot], image.flip(1).flip(2))
        assert torch.equal(recorded["images"][slot], image)


# -- through the recipe -------------------------------------------------------------------------------


def made_like(robot, folder):
    """A dataset of the robot's shape: its columns, its cameras, its rate."""
    path = make_dataset(
        folder,
        version="v2.1",
        episodes=2,
        length=8,
        cameras=tuple(robot.cameras.values()),
        state_dim=robot.state_dim,
        action_dim=robot.action_dim,
        fps=int(robot.frequency),
    )
    rename_columns(path, {"observation.state": robot.state_key, "action": robot.action_key})
    return path


def rename_columns(folder, names):
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"] = {names.get(key, key): value for key, value in info["features"].items()}
    (folder / "meta/info.json").write_text(json.dumps(info))
    for file in folder.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.rename_columns([names.get(name, name) for name in table.column_names]), file)


def recipe_for(robot, dataset, output, *overrides):
    return load_recipe(
        None,
        [
            f"data.path={dataset}",
            f"data.robot={robot.path}",
            f"output={output}",
            "policy.preset=tiny",
            "policy.config.max_state_dim=14",
            "policy.config.max_action_dim=14",
            "data.num_workers=0",
            "data.validation_fraction=0",
            "train.steps=2",
            "train.batch_size=4",
            "train.warmup_steps=1",
            "train.precision=no",
            "train.tensorboard=false",
            f"train.threads={torch.get_num_threads()}",
            *overrides,
        ],
    )


@each_robot
def test_a_tiny_policy_trains_two_steps(robot, tmp_path):
    dataset = made_like(robot, tmp_path / "set")
    result = train(recipe_for(robot, dataset, tmp_path / "run"), progress=False)
    assert result.step == 2
    assert math.isfinite(result.metrics["loss"])
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["data"]
    assert written["cameras"] == robot.cameras
    assert written["state_key"] == robot.state_key
    assert written["delta_mask"] == (None if robot.delta_mask is None else list(robot.delta_mask))
    names = [transform.name for transform in Pipeline.load(result.checkpoint).transforms]
    before = [transform.name for transform in robot.transforms()]
    assert names[: len(before)] == before
    assert names.index("normalize") == len(before) + (robot.delta_mask is not None)


def test_widowx_on_bridgedata(tmp_path, request):
    """On the real recordings where they are, else on a dataset of their shape."""
    robot = ROBOTS["widowx_bridge"]
    try:
        path = request.getfixturevalue("shared_dir") / "data" / "bridge_mini_v3"
    except pytest.skip.Exception:
        path = made_like(robot, tmp_path / "set")
    dataset = LeRobotDataset(path, action_horizon=5)
    assert (dataset.state_dim, dataset.action_dim) == (robot.state_dim, robot.action_dim)
    assert dataset.info.fps == robot.frequency
    assert set(robot.cameras.values()) <= set(dataset.info.cameras)
    recorded = dataset.info.features[robot.action_key].names
    assert recorded is None or tuple(recorded) == robot.action_names
    sample = {"state": torch.from_numpy(dataset.low_dim(robot.state_key)[:50].copy())}
    pipeline = Pipeline(robot.transforms())
    assert_close(pipeline.inverse(pipeline.forward(sample))["state"], sample["state"])
    statistics = compute_statistics(dataset, pipeline)
    assert statistics.features["actions"].width == 7
    result = train(
        recipe_for(robot, path, tmp_path / "run", "policy.config.action_horizon=5"), progress=False
    )
    assert result.step == 2


# -- in front of published weights --------------------------------------------------------------------


def test_aloha_acts_with_weights_that_record_statistics_only():
    """What the network would have learned to say for some actions comes back as these actions."""
    robot = ROBOTS["aloha"]
    policy = Pi0Policy(
        Pi0Config.tiny(max_state_dim=32, max_action_dim=32, cameras=tuple(robot.about.cameras))
    )
    ramp = tuple(0.1 * (dim + 1) if dim < 14 else 0.0 for dim in range(32))  # padded, as openpi stores it
    stats = FeatureStats(mean=ramp, std=(0.5,) * 14 + (1.0,) * 18)
    modes = dict.fromkeys(("state", "actions"), "zscore")
    bare = Pipeline(
        [
            Normalize(Statistics({"state": stats, "actions": stats}), modes, OPENPI_FORMULA),
            ResizeImages(tuple(policy.config.cameras), policy.config.image_size),
            TokenizePrompt(train_tokenizer(["fold the towel"], vocab_size=300), 16),
            PadDimensions(32, 32, 32, 32),
        ]
    )
    policy.pipeline = apply_robot(bare, robot)
    sample = random_sample(robot, seed=3, steps=policy.config.action_horizon)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    said = policy.pipeline.forward({**sample, "images": {"cam_high": image}, "task": "x"})["actions"]
    policy.sample_actions = lambda **_: said[None]
    answer = RobotPolicy(policy).infer(
        {
            "observation.images.cam_high": image.permute(1, 2, 0).numpy(),
            "observation.state": sample["state"].numpy(),
            "task": "fold the towel",
        }
    )["actions"]
    assert answer.shape == (policy.config.action_horizon, 14)
    assert_close(torch.from_numpy(answer), sample["actions"])


# -- the page that explains it ------------------------------------------------------------------------


def test_the_page_s_example_is_valid_and_says_true_numbers(tmp_path):
    page = (ROOT / "docs" / "add_a_robot.md").read_text()
    (tmp_path / "arm.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    robot = load_robot(tmp_path / "arm.yaml")
    pipeline = Pipeline(robot.transforms())
    state = torch.tensor([0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 1.0])
    there = pipeline.forward({"state": state, "actions": state[None]})
    assert there["state"].tolist() == [0.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert torch.equal(pipeline.inverse(there)["actions"][0], state)
    assert robot.delta_mask == (True,) * 6 + (False,)
