"""What the parts of a checkpoint say of each other: a contradiction is refused when loading, in every format.

The tables are made of the fields that are there; each row changes one of them and nothing else.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vla
from tests.checkpoints.test_damage import act, make_converted, make_ours
from tests.folders import contents_of, unchanged
from tests.policies.conftest import make_robot_policy, stats
from vla.checkpoints.agreement import check_agreement, robot_widths
from vla.checkpoints.convert import convert
from vla.errors import ConfigError, StatisticsError, VlaError, WeightsError, remedy
from vla.interface import RobotInterface, VectorInterface
from vla.policies.bc.config import BCConfig
from vla.policies.bc.pipeline import make_pipeline as make_bc
from vla.policies.bc.policy import BCPolicy
from vla.policies.pi0.policy import Pi0Policy
from vla.transforms.actions import DeltaActions, PadDimensions
from vla.transforms.base import Pipeline
from vla.transforms.grippers import FlipSigns, LinearMap
from vla.transforms.normalize import Normalize
from vla.transforms.statistics import Statistics
from vla.transforms.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agreement")
    make_ours(folder)
    for name in ("lerobot", "transformers", "openpi"):
        make_converted(name)(folder)
    return folder


@pytest.fixture
def copy(originals, tmp_path):
    def make(name):
        shutil.copytree(originals / name, tmp_path / name)
        return tmp_path / name

    return make


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder, error=VlaError):
    before = contents_of(folder)
    with pytest.raises(error):
        convert(folder, folder.parent / "made", "vla")
    assert not (folder.parent / "made").exists()
    with pytest.raises(error) as caught:
        vla.load(folder)
    assert contents_of(folder) == before
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["lerobot", "transformers", "openpi"])
@pytest.mark.parametrize("type", ["smolvla", "pi0_fast", "act", "pi05", "diffusion", "", 3])
def test_a_config_of_another_policy_is_refused(copy, name, type):
    folder = copy(name)
    key = "model_type" if name == "transformers" else "type"
    edit(folder / "config.json", **{key: type})
    message = refused(folder)
    assert str(type) in message
    assert "pi0" in message or name == "transformers"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_obs_steps", 2, "n_obs_steps=2 frames; pi0 reads 1"),
        ("n_obs_steps", "1", "n_obs_steps"),
        ("use_peft", True, "use_peft=True: an adapter belongs to these weights"),
        ("adapt_to_pi_aloha", True, "adapt_to_pi_aloha=True"),
        ("max_state_dim", 9, "max_state_dim is 9, but the tensors have 8"),
        ("max_state_dim", "8", "max_state_dim is '8', but the tensors have 8"),
        ("max_action_dim", 7, "max_action_dim is 7, but the tensors have 8"),
        ("image_resolution", [224, 224], "224"),
    ],
)
def test_lerobots_config_must_be_that_of_the_tensors(copy, field, value, message):
    folder = copy("lerobot")
    edit(folder / "config.json", **{field: value})
    assert message in refused(folder, WeightsError)


def test_what_changes_nothing_is_taken(copy):
    folder = copy("lerobot")
    expected = act(folder)
    edit(folder / "config.json", use_peft=None, n_obs_steps=None, adapt_to_pi_aloha=False)
    np.testing.assert_array_equal(act(folder), expected)


@pytest.mark.parametrize("feature", ["observation.state", "action"])
@pytest.mark.parametrize("width", [2, 5])
def test_lerobots_statistics_must_have_the_features_width(copy, feature, width):
    folder = copy("lerobot")
    key = "input_features" if feature == "observation.state" else "output_features"
    features = json.loads((folder / "config.json").read_text())[key]
    if features[feature]["shape"] == [width]:
        width += 1
    edit(folder / "config.json", **{key: features | {feature: {**features[feature], "shape": [width]}}})
    assert f"{feature} has {width} values, but the statistics have" in refused(folder, StatisticsError)


@pytest.mark.parametrize("width", [2, 5])
def test_lerobots_processor_must_have_the_statistics_width(copy, width):
    folder = copy("lerobot")
    for path in folder.glob("policy_preprocessor*.safetensors"):
        tensors = load_file(path)
        for key, tensor in tensors.items():
            if key.startswith("observation.state.") and tensor.ndim == 1 and len(tensor) == 3:
                tensors[key] = torch.ones(width) * (2 if "max" in key or "99" in key else 1)
        save_file(tensors, path)
    assert "observation.state" in refused(folder, StatisticsError)


def widened(folder, feature, width):
    path = folder / "statistics.json"
    read = json.loads(path.read_text())
    for name, vector in read["features"][feature].items():
        if isinstance(vector, list):
            read["features"][feature][name] = (vector * 9)[:width]
    path.write_text(json.dumps(read))


@pytest.mark.parametrize("feature", ["state", "actions"])
@pytest.mark.parametrize("width", [1, 4, 9])
def test_our_statistics_must_have_the_pipelines_width(copy, feature, width):
    folder = copy("vla")
    widened(folder, feature, width)
    message = refused(folder, StatisticsError)
    assert "contradicts itself" in message
    assert f"{width} wide by the statistics" in message


@pytest.mark.parametrize("name", ["transformers", "openpi"])
@pytest.mark.parametrize("width", [2, 9])
def test_published_statistics_must_have_room_and_fit_our_files(copy, name, width):
    folder = copy(name)
    if name == "openpi":
        path = folder / "assets" / "vla" / "norm_stats.json"
        read = json.loads(path.read_text())
        state = read["norm_stats"]["state"]
        read["norm_stats"]["state"] = {key: (vector * 9)[:width] for key, vector in state.items()}
        path.write_text(json.dumps(read))
    else:
        path = folder / "processor_config.json"
        edit(path, state_mean=[0.0] * width, state_std=[1.0] * width)
    assert "different statistics" in refused(folder, StatisticsError)
    (folder / "pipeline.json").unlink()
    (folder / "statistics.json").unlink()
    if width > 8:
        refused(folder)
    else:  # another robot of the same policy
        assert robot_widths(vla.AutoPolicy.from_pretrained(folder).pipeline) == (width, 2)


@pytest.mark.parametrize(
    ("step", "field", "value"),
    [
        ("pad_dimensions", "state_dim", 4),
        ("pad_dimensions", "action_dim", 3),
        ("pad_dimensions", "max_state_dim", 9),
        ("pad_dimensions", "max_action_dim", 7),
        ("resize_images", "size", 56),
        ("resize_images", "slots", ["top", "elsewhere"]),
        ("delta_actions", "mask", [True] * 3),
        ("tokenize_prompt", "max_length", 1),
    ],
)
def test_our_pipeline_must_make_what_the_policy_reads(copy, step, field, value):
    folder = copy("vla")
    path = folder / "pipeline.json"
    read = json.loads(path.read_text())
    for one in read["steps"]:
        if one["type"] == step:
            one[field] = value
    path.write_text(json.dumps(read))
    refused(folder)


@pytest.mark.parametrize(
    ("state", "action"), [(("x", "y"), ("a", "b")), (("x", "y", "z"), ("a",)), (tuple("abcd"), tuple("ab"))]
)
def test_the_recorded_robot_must_be_that_of_the_statistics(copy, state, action):
    folder = copy("vla")
    recorded = RobotInterface({"top": None}, VectorInterface(state), VectorInterface(action), 10.0)
    edit(folder / "pipeline.json", interface=recorded.to_json())
    assert "'interface'" in refused(folder, StatisticsError)


def test_a_tokenizer_beyond_the_vocabulary_is_refused(copy):
    folder = copy("vla")
    train_tokenizer(["pick up the cup", *map(chr, range(0x400, 0x600))], vocab_size=900).save_pretrained(
        folder
    )
    assert "vocab_size is" in refused(folder, ConfigError)


@pytest.mark.parametrize(
    "field", ["depth", "num_heads", "head_dim", "vocab_size", "max_state_dim", "max_action_dim", "model_type"]
)
def test_a_changed_config_of_ours_is_refused(copy, field):
    folder = copy("vla")
    value = json.loads((folder / "config.json").read_text())[field]
    edit(folder / "config.json", **{field: "vla_pi05" if field == "model_type" else value * 2})
    refused(folder)


@pytest.mark.parametrize("field", ["state_dim", "action_dim", "image_size", "cameras"])
def test_every_policys_config_must_be_that_of_its_pipeline(tmp_path, field):
    sizes = {"state_dim": 3, "action_dim": 2, "cameras": ("top",)}
    config = BCConfig.tiny(**sizes)
    policy = BCPolicy(config)
    other = BCConfig.tiny(**sizes | {field: {"cameras": ("side",), "image_size": 48}.get(field, 5)})
    widths = {"state_dim": other.state_dim, "action_dim": other.action_dim}
    statistics = Statistics({"state": stats(other.state_dim, 1.0), "actions": stats(other.action_dim, 1.0)})
    modes = {"state": "zscore", "actions": "minmax"}
    policy.save_pretrained(tmp_path / "bc")
    policy.pipeline = make_bc(other, statistics=statistics, normalization=modes, **widths)
    with unchanged(tmp_path), pytest.raises(ConfigError, match="policy to be saved contradicts itself"):
        policy.save_pretrained(tmp_path / "bc")
    policy.pipeline.save(tmp_path / "bc")
    assert "contradicts itself" in refused(tmp_path / "bc", ConfigError)


def test_transforms_of_other_packages_may_change_widths():
    """What they make of a state is theirs to know, so nothing behind them is compared."""

    class Halve(DeltaActions):
        name = "test_halve"
        __module__ = "somewhere.else"

    policy = make_robot_policy()
    normalize = policy.pipeline.find(Normalize)
    wide = replace(normalize, statistics=Statistics({"state": stats(6, 1.0), "actions": stats(2, 0.5)}))
    rest = [one for one in policy.pipeline.transforms if one is not normalize]
    check_agreement(policy, Pipeline([wide, Halve((False,)), *rest[1:]]))
    with pytest.raises(StatisticsError, match="6 wide by the statistics, but 3 wide"):
        check_agreement(policy, Pipeline([wide, *rest]))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (FlipSigns(state=(3,)), "dimension 3 of state"),
        (FlipSigns(actions=(2,)), "dimension 2 of actions"),
        (LinearMap("state", (5,), (0.0, 1.0), (1.0, 0.0)), "dimension 5 of state"),
        (DeltaActions((False, False, True)), "dimension 2 of actions"),
    ],
)
def test_conventions_name_dimensions_that_are_there(step, message):
    policy = make_robot_policy()
    with pytest.raises(ConfigError, match=message):
        check_agreement(policy, Pipeline([step, *policy.pipeline.transforms]))


def test_widths_are_the_robots():
    policy = make_robot_policy()
    assert robot_widths(policy.pipeline) == (3, 2)
    assert robot_widths(Pipeline([])) == (None, None)
    assert robot_widths(Pipeline([PadDimensions(4, 2, 8, 8)])) == (4, 2)


class TestRun:
    """In a run's checkpoint nothing was downloaded: the message names the older one to resume from."""

    @pytest.fixture
    def run(self, originals, tmp_path):
        for step in (2, 4, 10):
            shutil.copytree(originals / "vla", tmp_path / "checkpoints" / f"step-{step:06d}")
        (tmp_path / "checkpoints" / "last").symlink_to("step-000010")
        return tmp_path / "checkpoints"

    @pytest.mark.parametrize(
        "name", ["model.safetensors", "config.json", "pipeline.json", "statistics.json", "tokenizer.json"]
    )
    @pytest.mark.parametrize("way", ["step-000010", "last"])
    def test_a_damaged_file_names_the_older_checkpoint(self, run, name, way):
        path = run / "step-000010" / name
        path.write_bytes(path.read_bytes()[:20])
        before = contents_of(run)
        with pytest.raises(VlaError) as caught:
            vla.load(run / way)
        assert f"remove {run / 'step-000010'} to resume from {run / 'step-000004'}" in str(caught.value)
        assert "download" not in str(caught.value)
        assert contents_of(run) == before

    def test_the_first_one_has_none_before_it(self, run):
        assert "no older checkpoint" in remedy(run / "step-000002" / "model.safetensors")
        assert remedy(run.parent / "elsewhere" / "model.safetensors") == "download it again"

    def test_what_a_user_asks_for_is_no_damage(self, run):
        for wrong in ({"config": {"action_horizn": 3}}, {"dtype": "float7"}, {"pipeline": "left"}):
            with pytest.raises(VlaError) as caught:
                vla.load(run / "last", **wrong)
            assert "resume" not in str(caught.value)


DEVICES = [
    "cuda",
    "cuda:7",
    "mps",
    "gpu",
    "nonsense",
    "meta",
    "",
    "cuda:-1",
    "cuda:x",
    99,
    True,
    1.5,
    ["cpu"],
]


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_device_that_is_not_there_is_one_sentence(originals, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    messages = set()
    for load in (vla.load, vla.AutoPolicy.from_pretrained, Pi0Policy.from_pretrained):
        with pytest.raises(ConfigError) as caught:
            load(originals / "vla", device=device)
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert repr(device) in messages.pop() or str(device) in str(caught.value)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"], ids=str)
def test_a_device_that_is_there_is_taken(originals, device):
    assert vla.load(originals / "vla", device=device).policy.device.type == "cpu"
