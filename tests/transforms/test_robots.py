"""Robot files in general; `tests/recipes/test_robots.py` holds the shipped ones to their facts."""

import copy
import re

import pytest
import torch
import yaml

from vla.errors import ConfigError, StatisticsError
from vla.transforms import (
    DefaultTask,
    DeltaActions,
    FeatureStats,
    FlipSigns,
    LinearMap,
    Normalize,
    PadDimensions,
    Pipeline,
    RenameCameras,
    ResizeImages,
    RotateImages,
    Statistics,
)
from vla.transforms.normalize import OPENPI_FORMULA
from vla.transforms.robots import apply_robot, load_robot

ARM = {
    "name": "arm",
    "frequency": 10,
    "cameras": {
        "base": {"robot": "front", "dataset": "observation.images.front", "rotate": 90},
        "wrist": {"robot": "hand", "dataset": "hand", "wrist": True, "rotate": 180, "dataset_rotate": 0},
        "other": None,
    },
    "state": {
        "key": "state",
        "dimensions": [
            {"kind": "joint", "unit": "rad", "names": ["j0", "j1"]},
            {"kind": "gripper", "unit": "1 open", "names": ["grip"], "range": [0, 1]},
        ],
        "flip": ["j1"],
        "scales": {"grip": {"map": "linear", "robot": [0, 1], "policy": [1, 0]}},
    },
    "action": {
        "key": "actions",
        "dimensions": [{"kind": "joint", "unit": "rad", "names": ["j0", "j1", "grip"]}],
        "flip": ["j1"],
        "delta": [2, -1],
    },
    "execution": {"open_loop_steps": 3, "clip": [-1, 1]},
    "default_prompt": "pick",
    "sources": ["made up"],
}
SERVE = {"images": {"eye": "front", "hands": {"left": "wrist", "right": None}}, "state": ["q", "grip"]}


@pytest.fixture
def write(tmp_path):
    """Write ARM with some values changed, by dotted key; None removes one."""

    def write(changes=None):
        values = copy.deepcopy(ARM)
        for key, value in (changes or {}).items():
            *path, last = key.split(".")
            inner = values
            for part in path:
                inner = inner[part]
            if value is None:
                del inner[last]
            else:
                inner[last] = value
        (tmp_path / "arm.yaml").write_text(yaml.safe_dump(values))
        return tmp_path / "arm.yaml"

    return write


def test_what_a_robot_says(write):
    robot = load_robot(str(write()))
    assert (robot.name, robot.frequency, robot.default_prompt, robot.asset_id) == ("arm", 10.0, "pick", None)
    assert robot.cameras == {"base": "observation.images.front", "wrist": "hand"}
    assert robot.camera_names == {"base": "front", "wrist": "hand"}
    assert (robot.absent_cameras, robot.wrist_cameras) == (("other",), ("wrist",))
    assert (robot.state_key, robot.action_key, robot.state_dim, robot.action_dim) == (
        "state",
        "actions",
        3,
        3,
    )
    assert robot.state_names == robot.action_names == ("j0", "j1", "grip")
    assert robot.delta_mask == (True, True, False)
    assert (robot.execution.open_loop_steps, robot.execution.clip) == (3, (-1.0, 1.0))


def test_transforms_in_order(write):
    assert load_robot(write()).transforms() == [
        DefaultTask("pick"),
        RotateImages({"front": 90, "hand": 180, "base": 90}),
        RenameCameras({"front": "base", "hand": "wrist"}),
        FlipSigns(state=(1,), actions=(1,)),
        LinearMap("state", (2,), (0.0, 1.0), (1.0, 0.0)),
    ]


def test_a_robot_in_the_policy_s_own_convention_needs_no_transforms(write):
    plain = write(
        {
            "cameras": {"base": {"robot": "base", "dataset": "base"}},
            "state.flip": [],
            "state.scales": {},
            "action.flip": [],
            "action.delta": ["j1"],
            "default_prompt": None,
        }
    )
    robot = load_robot(plain)
    assert robot.transforms() == []
    assert robot.delta_mask == (False, True, False)
    assert load_robot(write({"action.delta": [-3]})).delta_mask is None
    assert load_robot(write({"action.delta": [1]})).delta_mask == (True, False, False)
    assert load_robot(write({"action.delta": None})).delta_mask is None


def test_a_picture_s_name_says_whose_it_is(write):
    """As the robot sees it under the robot's name, as the dataset stores it under the slot's."""
    pipeline = Pipeline(load_robot(write()).transforms())
    image = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    live = pipeline.forward({"images": {"hand": image, "front": image}})["images"]
    recorded = pipeline.forward({"images": {"wrist": image, "base": image}})["images"]
    assert torch.equal(live["wrist"], image.flip(-1, -2))
    assert torch.equal(recorded["wrist"], image)
    assert torch.equal(live["base"], recorded["base"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frequencey": 3}, "unknown key 'frequencey'. Did you mean 'frequency'?"),
        ({"cameras.base.rotation": 90}, "unknown key 'cameras.base.rotation'. Did you mean 'rotate'?"),
        ({"state.dimensions": [{"kind": "joint", "unit": "rad", "name": ["a"]}]}, "Did you mean 'names'"),
        ({"frequency": None}, "'frequency' is missing"),
        ({"frequency": 0}, "'frequency' is 0, expected greater than 0"),
        ({"frequency": float("nan")}, "'frequency' is nan, expected a finite"),
        ({"cameras.base.rotate": 45}, "'cameras.base.rotate' is 45, expected 0, 90, 180 or 270"),
        ({"cameras.base.robot": ""}, "must not be empty"),
        ({"cameras": {"base": None}}, "at least one image"),
        ({"cameras.wrist.robot": "front"}, "two slots are filled by one robot camera"),
        ({"cameras.wrist.dataset": "observation.images.front"}, "one dataset camera"),
        ({"cameras.wrist.robot": "other"}, "'other' is the name of another slot"),
        ({"cameras.wrist.robot": "wrist"}, "rotate and dataset_rotate differ"),
        ({"state.flip": ["j2"]}, "there is no dimension 'j2', only j0, j1, grip."),
        ({"state.flip": ["j1", "j1"]}, "'j1' is named twice"),
        ({"state.dimensions": []}, "'state.dimensions' is [], expected at least one entry."),
        ({"state.dimensions": [{"kind": "joint", "unit": "rad", "names": ["a"], "range": [1, 0]}]},
         "'state.dimensions.0.range': [1.0, 0.0] must be the lower and then the upper limit."),
        ({"execution.clip": [1, -1]}, "'execution.clip': [1.0, -1.0] must be the lower and then"),
        ({"execution.clip": [1, 1]}, "'execution.clip': [1.0, 1.0] must be the lower and then"),
        ({"state.scales": {"gripper": {"map": "linear", "robot": [0, 1], "policy": [1, 0]}}}, "'grip'?"),
        ({"state.scales.grip.map": "liner"},
         "'state.scales.grip.map' is 'liner', expected linear or slider_crank. Did you mean 'linear'?"),
        ({"state.scales.grip.map": None},
         "'state.scales.grip.map' is missing; it is linear or slider_crank."),
        ({"state.scales.grip.robot": [0, 1, 2]}, "grip.robot' is [0, 1, 2], expected 2 entries."),
        ({"state.scales.grip.robot": [0, "1e3"]},
         "'state.scales.grip.robot.1' is '1e3', expected a number: YAML takes this for text, write 1000.0."),
        ({"state.scales.grip.policy": ["1.0e39", 0]}, "takes this for text, write 1.0e+39."),
        ({"frequency": "nan"}, "'frequency' is 'nan', expected a finite number."),
        ({"execution.open_loop_steps": "1e1"}, "a whole number: YAML takes this for text, write 10."),
        ({"state.scales.grip.robot": [0, 1e-40]}, "robot and policy: the line between [0.0, 1e-40]"),
        ({"state.scales.grip.policy": [0, 1e-40]}, "and [0.0, 1e-40] is too steep, one way or the other"),
        ({"state.scales.grip.policy": [1e39, 0]}, "is too steep"),
        ({"state.scales.grip.robot": [-1e308, 1e308]}, "is too steep"),
        ({"state.key": 3}, "'state.key' is 3, expected text: put it in quotes if it is meant as such."),
        ({"state.key": ["a", 3]}, "'state.key.1' is 3, expected text: put it in quotes"),
        ({"state.flip": [0, 1, 0]},
         "'state.flip.0' is 0, expected text: put it in quotes if it is meant as such, and so "
         "for 2 more of its entries."),
        ({"state.dimensions": [{"kind": "joint", "unit": "m", "names": [True, "b", False]}]},
         "'state.dimensions.0.names.0' is True, expected text: put it in quotes if it is meant as such, "
         "and so for 1 more of its entries."),
        ({"serve": SERVE | {"images": {"a": 3}}}, "'serve.images.a' is 3, expected text"),
        ({"name": [[["deep"] * 9] * 9] * 9}, "'name' is an object of type list, expected text"),
        ({"state.scales.grip.robot": [1, 1]}, "linear_map, robot: two different finite numbers"),
        ({"state.scales.grip.policy": [1]}, "'state.scales.grip.policy' has only 1 of its entries"),
        ({"action.delta": [2, -2]}, "delta counts 4 dimensions, the actions have 3"),
        ({"action.delta": [2, 0]}, "counts are not 0"),
        ({"action.delta": ["j7"]}, "no dimension 'j7'"),
        ({"action.delta": ["j0", 1]}, "'action.delta"),
        ({"state.dimensions": [{"kind": "joint", "unit": "rad", "names": ["j1"]}], "state.scales": {}},
         "action.delta: ['j1'] have no state of the same place"),
        ({"execution.steps": 3}, "unknown key 'execution.steps'"),
        ({"default_prompt": ""}, "'default_prompt' is '', expected text."),
        ({"serve": {"images": {}}}, "'serve.state' is missing"),
        ({"serve": SERVE | {"image": {}}}, "unknown key 'serve.image'. Did you mean 'images'?"),
        ({"serve": SERVE | {"images": {"eye": "frnt"}}},
         "serve.images: there is no camera 'frnt', only base, front, wrist, hand. Did you mean 'front'?"),
        ({"serve": SERVE | {"images": {"eye": "front", "b": "base"}}}, "'base' and 'front' are one camera"),
        ({"serve": SERVE | {"images": {"a": "hand", "b": {"c": "hand"}}}}, "two keys fill the camera 'hand'"),
        ({"serve": SERVE | {"images": {"a": {}}}}, "images.a holds no camera"),
        ({"serve": SERVE | {"images": {"q": "hand"}}}, "the key 'q' is named twice"),
        ({"serve": SERVE | {"task": "q"}}, "the key 'q' is named twice"),
        ({"serve": SERVE | {"ignore": ["vla/seed"]}}, "the key 'vla/seed' is empty, or one of vla's own"),
        ({"serve": SERVE | {"metadata": {"vla": 1}}}, "the key 'vla' is empty, or one of vla's own"),
        ({"serve": SERVE | {"optional": ["base"]}}, "optional: no key fills the camera 'base'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_and_key(write, changes, said):
    path = write(changes)
    with pytest.raises(ConfigError) as caught:
        load_robot(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not re.search(r"Tuple|tag|tuple\[|dict\[|\.str|valid|\.linear", str(caught.value))
    assert str(caught.value).count(", expected ") <= 2


def test_what_only_describes_may_be_left_out(write):
    needed = dict.fromkeys(("sources", "default_prompt", "execution", "action.flip", "action.delta"))
    about = load_robot(write(needed)).about
    assert (about.sources, about.action.delta, about.serve, about.asset_id) == ((), (), None, None)


def test_what_its_clients_call_things(write):
    about = load_robot(
        write({"serve": SERVE | {"optional": ["wrist"], "metadata": {"home": [0, 1.5]}}})
    ).about
    assert about.serve.cameras == {("eye",): "front", ("hands", "left"): "wrist", ("hands", "right"): None}
    assert (about.serve.state, about.serve.task, about.serve.actions) == (("q", "grip"), "prompt", "actions")
    assert about.serve.metadata == {"home": [0, 1.5]}
    assert load_robot(write()).about.serve is None


def test_shipped_robots_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_robot("droid").name == "DROID"
    with pytest.raises(ConfigError, match=r"no robot 'driod'.*aloha, droid.*Did you mean 'droid'"):
        load_robot("driod")
    with pytest.raises(ConfigError, match=r"There is no robot file droid\.yaml"):
        load_robot("droid.yaml")
    (tmp_path / "droid").mkdir()  # what is there is meant
    with pytest.raises(ConfigError, match="cannot be read"):
        load_robot("droid")


def test_unreadable_files(tmp_path):
    for name, content, said in [
        ("absent.yaml", None, "There is no robot file"),
        ("broken.yaml", b"a: [", "is not YAML"),
        ("list.yaml", b"- 1", "must be a mapping"),
        ("binary.yaml", b"\xff\xfe\x00", "cannot be read"),
        ("date.yaml", b"name: 2020-01-01", "not plain data"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            load_robot(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_robot(tmp_path)
    for value in (None, 5, b"arm.yaml", ["arm.yaml"]):
        with pytest.raises(ConfigError, match=r"named by text or a Path, got the (NoneType|int|bytes|list) "):
            load_robot(value)


@pytest.mark.parametrize("key", ["name", "cameras", "robot", "key", "flip", "delta", "clip", "sources"])
def test_a_key_given_twice_is_refused_at_every_depth(write, key):
    path = write()
    lines = path.read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
    indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
    lines.insert(number, f"{indent}{key}: 1")
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=f"is not YAML: .* the key '{key}' is given twice"):
        load_robot(path)


def statistics(width, of=None):
    """Statistics that count up, of `width` dimensions, zero from `of` on (as padding is)."""
    of = width if of is None else of
    values = tuple(float(dim + 1) if dim < of else 0.0 for dim in range(width))
    feature = FeatureStats(
        mean=values, std=(1.0,) * width, q01=values, q99=tuple(v + bool(v) for v in values)
    )
    return Statistics({"state": feature, "actions": feature}, source="x")


def published(width, of=None, slots=("base", "wrist", "other")):
    """A pipeline as a published checkpoint has it: no cameras, no signs, no delta mask."""
    modes = {"state": "zscore", "actions": "zscore"}
    return Pipeline(
        [
            Normalize(statistics(width, of), modes, OPENPI_FORMULA),
            ResizeImages(slots, 4),
            PadDimensions(width, width, 8, 8),
        ]
    )


@pytest.mark.parametrize(("width", "of"), [(3, 3), (8, 3)])
def test_a_robot_goes_in_front_of_a_published_pipeline(write, width, of):
    robot = load_robot(write())
    pipeline = apply_robot(published(width, of), robot)
    names = [transform.name for transform in pipeline.transforms]
    assert names == [
        *(transform.name for transform in robot.transforms()),
        "delta_actions",
        "normalize",
        "resize_images",
        "pad_dimensions",
    ]
    state = torch.tensor([0.1, 0.2, 0.3])
    actions = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    image = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    there = pipeline.forward({"state": state, "actions": actions, "images": {"hand": image}})
    assert (there["state"].shape, there["actions"].shape) == ((8,), (4, 8))
    turned = there["pixel_values"][1].add(1).mul(127.5).round().to(torch.uint8)
    assert torch.equal(turned, image.flip(-1, -2))
    # by hand: sign, then the difference to the state of the changed sign, then the z-score
    expected = [(-actions[0, 1] + state[1] - 2) / 1, (1 - state[2] - 3) / 1]
    assert there["actions"][0, 1].item() == pytest.approx(expected[0].item(), abs=1e-5)
    assert there["state"][2].item() == pytest.approx(expected[1].item(), abs=1e-5)
    seen = pipeline.forward({"state": state, "images": {"hand": image}})
    back = pipeline.inverse(
        {
            "actions": there["actions"],
            "state": seen["state"],
            "reference_state": seen["reference_state"],
        }
    )
    torch.testing.assert_close(back["actions"], actions)
    torch.testing.assert_close(back["state"], state)


def test_a_pipeline_that_knows_its_robot_is_left_alone(write):
    robot = load_robot(write())
    once = apply_robot(published(3), robot)
    with pytest.raises(ConfigError, match=r"arm\.yaml would apply them twice"):
        apply_robot(once, robot)
    with pytest.raises(ConfigError, match="'delta_actions'"):
        apply_robot(Pipeline([DeltaActions((True,)), *published(3).transforms]), robot)


def test_statistics_of_another_robot_are_refused(write):
    robot = load_robot(write())
    with pytest.raises(StatisticsError, match=r"'state' have 4 dimensions, but arm .* has 3"):
        apply_robot(published(8, 4), robot)
    with pytest.raises(StatisticsError, match="'state' have 2 dimensions"):
        apply_robot(published(2), robot)


def test_a_slot_that_the_checkpoint_lacks_is_refused(write):
    with pytest.raises(ConfigError, match=r"slot 'wrist'.*only base, wrist_left.*'wrist_left'"):
        apply_robot(published(3, slots=("base", "wrist_left")), load_robot(write()))
