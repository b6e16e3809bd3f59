"""`data.mixture`: two robots in one batch, each with its own statistics, all the way to acting."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import vla
from tests.data.make import make_dataset
from tests.train.conftest import numbers
from vla.adapters.files import merge
from vla.checkpoints.convert import convert
from vla.data import LeRobotDataset
from vla.errors import ConfigError, DatasetError, TrainingError
from vla.policies.robot import RobotPolicy
from vla.train.loop import train
from vla.train.recipe_file import load_recipe
from vla.train.setup.members import member_recipes
from vla.train.setup.run import set_up
from vla.transforms import Normalize

ARM = "{path: %s/arm, weight: 3, cameras: {base: observation.images.top}, response_key: response}"
HAND = "{path: %s/hand, weight: 1, cameras: {wrist: observation.images.wrist}, delta_mask: [true, true]}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    small = {"episodes": 2, "length": 12}
    make_dataset(folder / "arm", cameras=["observation.images.top"], response=True, **small)
    make_dataset(
        folder / "hand",
        cameras=["observation.images.wrist"],
        state_dim=5,
        action_dim=4,
        fps=25,
        seed=1,
        width=96,
        **small,
    )
    return folder


@pytest.fixture
def make(data, tmp_path):
    """The recipe of both; `members` are templates of their entries."""

    def make(*overrides, members=(ARM, HAND), output="run"):
        listed = ", ".join(member % data for member in members)
        small = [
            "policy.preset=tiny",
            "data.num_workers=0",
            "data.augment=false",
            "policy.config.action_horizon=2",
        ]
        run = ["train.batch_size=4", "train.steps=2", "train.warmup_steps=1", "train.precision=no"]
        quiet = [
            "data.validation_fraction=0.5",
            "train.log_every=1",
            "train.validate_every=2",
            "train.tensorboard=false",
            "train.threads=1",
        ]
        given = [f"data.mixture=[{listed}]", f"output={tmp_path / output}"]
        return load_recipe(None, [*given, *small, *run, *quiet, *overrides])

    return make


def job(recipe):
    return set_up(recipe, None, rank=0, processes=1)


def of_member(batch, slot):
    """Which samples of a batch show the camera of `slot`, alone of both."""
    seen = batch["pixel_mask"]
    assert (seen.sum(1) == 1).all()
    return seen[:, slot]


def test_one_batch_mixes_robots(make):
    made = job(make("train.batch_size=12"))
    assert list(made.policy.config.cameras) == ["base", "wrist"]
    (batch, where) = next(iter(made.loader))
    arm, hand = of_member(batch, 0), of_member(batch, 1)
    assert (arm.sum(), hand.sum()) == (9, 3)
    assert [place[0].split("/")[0] == "arm" for place in where] == arm.tolist()
    assert (~batch["action_dim_is_pad"]).sum(1).tolist() == [3 if one else 4 for one in arm]
    assert (batch["state"][arm][:, 3:] == 0).all()
    assert (batch["labels"][arm] != -100).any(1).all()
    assert (batch["labels"][hand] == -100).all()


def test_two_robots_train_together_and_resume(make, tmp_path):
    recipe = make("train.steps=3")
    whole = train(recipe, progress=False)
    train(make("train.steps=2", "train.decay_steps=3", output="cut"), progress=False)
    first = train(make("train.decay_steps=3", "train.steps=2", output="b"), progress=False)
    assert {"loss", "action_loss", "text_loss", "validation_loss", "data_wait_share"} <= first.metrics.keys()
    train(make("train.decay_steps=3", "train.steps=3", output="b"), resume=True, progress=False)
    assert numbers(tmp_path / "b")[0] == numbers(tmp_path / "cut")[0]
    last = [record["loss"] for record in numbers(tmp_path / "b") if "loss" in record]
    assert last == [record["loss"] for record in numbers(whole.folder) if "loss" in record]


def chunks_of(dataset, relative):
    """Every recorded action of every chunk; where `relative` is 1, as the difference from the state."""
    rows = []
    for item in dataset:
        state, inside = item["observation.state"].numpy(), ~item["action_is_pad"].numpy()
        rows.append(item["action"].numpy()[inside] - relative * state[: len(relative)])
    return np.concatenate(rows).astype(np.float64)


MODES = {
    "zscore": lambda x, said: x.mean(0) + said * (x.std(0) + 1e-6),
    "quantile": lambda x, said: (
        (np.quantile(x, 0.01, 0) + np.quantile(x, 0.99, 0)) / 2
        + said * (np.quantile(x, 0.99, 0) - np.quantile(x, 0.01, 0) + 1e-6) / 2
    ),
}
"""What a value in model space is in the robot's, from the recorded values."""


@pytest.mark.parametrize("mode", MODES)
def test_each_robot_is_denormalised_by_its_own_statistics(make, data, mode):
    recipe = make("data.validation_fraction=0", f"data.normalization={mode}", "train.steps=1")
    checkpoint = train(recipe, progress=False).checkpoint
    for name, camera, state_dim, relative in (
        ("arm", "base", 3, [0.0, 0.0, 0.0]),
        ("hand", "wrist", 5, [1.0, 1.0, 0.0, 0.0]),
    ):
        policy, state = vla.load(checkpoint, pipeline=name), np.arange(state_dim, dtype=np.float32)
        said = torch.randn(1, 2, policy.policy.config.max_action_dim)
        policy.policy.sample_actions = lambda said=said, **_: said
        seen = {f"observation.images.{camera}": np.zeros((32, 64, 3), np.uint8), "task": "x"}
        seen["observation.state"] = state
        recorded = chunks_of(LeRobotDataset(data / name, action_horizon=2), np.array(relative))
        width = len(relative)
        expected = MODES[mode](recorded, said[0, :, :width].numpy()) + relative * state[:width]
        assert policy.infer(seen)["actions"] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("kind", ["vision", "prefix"])
def test_kept_features_of_every_member_train_the_same(make, tmp_path, kind):
    """The prompts hold the states, of other widths: so the lengths of the prefixes differ as well."""
    still = ["policy.type=pi05", "policy.freeze=vlm", "policy.config.max_prompt_length=80"]
    members = tuple(one.replace(", response_key: response", "") for one in (ARM, HAND))
    results = []
    for name, cached in (
        ("plain", []),
        ("kept", [f"data.feature_cache={tmp_path / kind}", f"data.feature_cache_of={kind}"]),
    ):
        recipe = make(*still, *cached, "train.steps=3", members=members, output=name)
        results.append(train(recipe, progress=False).metrics)
    assert len(list((tmp_path / kind).iterdir())) >= 2, "a folder for each member"
    for name in ("loss", "validation_loss", "gradient_norm"):
        assert results[1][name] == pytest.approx(results[0][name], abs=1e-5)


def test_weights_are_honoured_in_the_batches_that_are_trained_on(make):
    job_of_both = job(make("train.batch_size=3"))
    batches = [next(batches) for batches in [iter(job_of_both.loader)] for _ in range(100)]
    seen = [episode.split("/")[0] for _, where in batches for episode, _ in where]
    cameras = torch.cat([of_member(batch, 0) for batch, _ in batches])
    assert cameras.tolist() == [name == "arm" for name in seen]
    share, draws = 3 / 4, len(seen)
    assert abs(seen.count("arm") / draws - share) <= 2 * (share * (1 - share) / draws) ** 0.5


@pytest.mark.slow
def test_an_adapter_of_two_robots_at_once(make, tmp_path):
    base = train(make("train.steps=1", output="base"), progress=False).checkpoint
    adapted = ["policy.preset=null", "policy.config={}", f"policy.pretrained={base}", "policy.adapter.rank=2"]
    whole = train(make(*adapted, "train.steps=3", output="whole"), progress=False).checkpoint
    train(make(*adapted, "train.decay_steps=3", output="cut"), progress=False)
    rest = make(*adapted, "train.decay_steps=3", "train.steps=3", output="cut")
    train(rest, resume=True, progress=False)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    assert not (whole / "model.safetensors").exists()
    with pytest.raises(ConfigError, match="several robots"):
        vla.load(whole)
    merge(whole, tmp_path / "merged")
    for name, camera, state_dim, action_dim in (("arm", "base", 3, 3), ("hand", "wrist", 5, 4)):
        seen = {f"observation.images.{camera}": np.zeros((32, 64, 3), np.uint8), "task": "x"}
        seen["observation.state"] = np.ones(state_dim, np.float32)
        noise = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
        one, other = (
            vla.load(folder, pipeline=name).infer(seen, noise=noise)["actions"]
            for folder in (whole, tmp_path / "merged")
        )
        assert one.shape == (2, action_dim)
        assert other == pytest.approx(one, abs=1e-5)
        kept = vla.AutoPolicy.from_pretrained(tmp_path / "merged").pipelines[name].find(Normalize)
        assert kept == vla.AutoPolicy.from_pretrained(base).pipelines[name].find(Normalize)


def test_a_checkpoint_of_several_robots_must_be_told_which(make, tmp_path):
    checkpoint = train(make("train.steps=1"), progress=False).checkpoint
    assert not (checkpoint / "pipeline.json").exists()
    with pytest.raises(ConfigError, match=r"several robots.*arm, hand.*pipeline='arm'"):
        vla.load(checkpoint)
    with pytest.raises(ConfigError, match=r"no pipeline 'hnd', only: arm, hand.*'hand'"):
        vla.load(checkpoint, pipeline="hnd")
    with pytest.raises(ConfigError, match=r"several robots.*--pipeline arm"):
        convert(checkpoint, tmp_path / "converted", "lerobot")
    whole = vla.AutoPolicy.from_pretrained(checkpoint)
    assert (whole.pipeline, list(whole.pipelines), whole.tokenizer is None) == (None, ["arm", "hand"], False)
    with pytest.raises(ConfigError, match="several robots"):
        RobotPolicy(whole)
    one = vla.load(checkpoint, pipeline="hand").policy
    one.save_pretrained(tmp_path / "hand")
    assert not (tmp_path / "hand" / "pipelines").exists()
    alone = vla.load(tmp_path / "hand").pipeline.find(Normalize)
    assert alone == whole.pipelines["hand"].find(Normalize)
    with pytest.raises(ConfigError, match="of one robot"):
        vla.load(tmp_path / "hand", pipeline="hand")


def test_fine_tuning_goes_on_from_a_mixture(make, data, tmp_path):
    checkpoint = train(make("train.steps=1"), progress=False).checkpoint
    recipe = make(
        f"policy.pretrained={checkpoint}",
        "policy.preset=null",
        "policy.config={}",
        "data.mixture=null",
        f"data.path={data}/arm",
        "data.cameras={base: observation.images.top}",
        output="one",
    )
    policy = job(recipe).policy
    assert list(policy.pipelines) == [None]
    assert policy.pipeline is policy.pipelines[None]
    assert policy.pipeline_names == ()


def test_members_take_what_they_leave_open_from_data(make):
    recipes = member_recipes(make("data.normalization=quantile", "data.delta_mask=[true]"))
    arm, hand = recipes["arm"].data, recipes["hand"].data
    assert (arm.normalization, hand.normalization) == ("quantile", "quantile")
    assert (arm.delta_mask, hand.delta_mask) == ((True,), (True, True))
    assert (arm.response_key, hand.response_key) == ("response", None)
    assert arm.path.endswith("/arm")


def test_the_record_reads_back(make, tmp_path):
    recipe = make()
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml").flat() == recipe.flat()


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ((ARM, HAND.replace("weight: 1", "weight: 0")), r"data\.mixture\.1\.weight.*greater than 0"),
        ((ARM, HAND.replace("weight: 1", "weigth: 1")), r"unknown key 'data\.mixture\.1\.weigth'.*weight'"),
        ((ARM, HAND.replace("weight: 1, ", "")), r"'data\.mixture\.1\.weight' is missing"),
        ((ARM, ARM), "Two members of data.mixture are called 'arm'"),
        ((ARM.replace("{path", "{name: a/b, path"),), "cannot name a pipeline"),
        ((ARM, HAND.replace("images.wrist", "images.wrst")), r"'hand': There is no camera.*wrst"),
        ((ARM, HAND.replace("delta_mask", "state_key: nowhere, delta_mask")), r"'hand': .*nowhere"),
        ((ARM, HAND.replace("delta_mask", "robot: no.yaml, delta_mask")), r"'hand': .*no\.yaml"),
        ((), "data.mixture is empty"),
    ],
)
def test_what_is_wrong_with_a_member_is_said_of_it(make, members, said):
    with pytest.raises((ConfigError, DatasetError), match=said):
        job(make(members=members))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.path=x", "give `path` or `mixture`, not both"),
        ("data.feature_cache=x", r"'arm': data\.feature_cache needs a frozen vision tower"),
        ("train.batch_size=64", r"16 draws.*'arm'"),
        ("policy.config.cameras=[base]", r"'hand': The policy has no camera slot 'wrist'"),
        ("policy.config.max_action_dim=3", r"'hand': The robot's action has 4 values"),
    ],
)
def test_what_a_mixture_cannot_do(make, override, said):
    with pytest.raises((ConfigError, DatasetError), match=said):
        job(make(override))


def test_a_member_that_has_changed_is_not_resumed(make, data, tmp_path):
    recipe = make("train.steps=1")
    checkpoint = train(recipe, progress=False).checkpoint
    broken = checkpoint / "pipelines" / "hand" / "statistics.json"
    normalize = vla.AutoPolicy.from_pretrained(checkpoint).pipelines["hand"].find(Normalize)
    other = replace(normalize, statistics=replace(normalize.statistics, source="another"))
    other.save_files(broken.parent)
    with pytest.raises(TrainingError, match=r"'hand': .*another state of the dataset"):
        set_up(recipe, checkpoint, rank=0, processes=1)


def test_wrist_cameras_of_all_members(make):
    assert job(make()).policy.config.wrist_cameras == ("wrist",)
    assert tuple(job(make("data.wrist_cameras=[base]")).policy.config.wrist_cameras) == ("base",)


def test_a_mixture_goes_by_the_length_of_every_members_texts(make):
    long = "policy.config.max_prompt_length=48"
    made, plain = job(make("data.bucket_by_length=true", long)), job(make(long))
    epochs = [list(itertools.islice(one.loader, one.loader.batches_per_epoch)) for one in (made, plain)]
    assert sorted(w for _, where in epochs[0] for w in where) == sorted(
        w for _, where in epochs[1] for w in where
    )

    def padded(epoch):
        lengths = [batch["attention_mask"].sum(1) for batch, _ in epoch]
        return sum(int((length.max() - length).sum()) for length in lengths)

    assert 2 * padded(epochs[0]) < padded(epochs[1])
