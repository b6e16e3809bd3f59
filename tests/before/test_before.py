"""Checkpoints, runs, recipes and pipelines written at commit f1e8f75 still load, resume and convert.

`make_samples.py` wrote the files in `samples/` and the numbers next to them with the library of that commit.
Numbers are held to 1e-5 of the largest, since processors round differently; on one machine they are the same.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vla
from tests.before.stored import (
    SAMPLES,
    config_values,
    flat,
    read_arrays,
    read_observation,
    read_sample,
)
from vla.cli import main
from vla.policies.registry import make_config
from vla.train import load_recipe
from vla.transforms import Pipeline
from vla.transforms.robots import load_robot

RENAMED: dict[str, str] = {
    "head_width": "head_dim",
    "vlm.mlp_width": "vlm.mlp_dim",
    "expert.mlp_width": "expert.mlp_dim",
    "insulate_backbone": "knowledge_insulation",
}
"""Key of before, in a recipe or in a policy's config -> its name now; whoever renames one adds it."""

CHECKPOINTS = {"pi0": "checkpoints/pi0", "pi05": "checkpoints/pi05", "plain": "checkpoints/plain"}
CONVERTED = sorted(path.name for path in (SAMPLES / "converted").iterdir())
RUNS = sorted(path.name for path in (SAMPLES / "trained").iterdir())
RECIPES = json.loads((SAMPLES / "recipes" / "meant.json").read_text())
LOSSES = json.loads((SAMPLES / "recipes" / "losses.json").read_text())
PIPELINES = sorted(path.name for path in (SAMPLES / "pipelines").iterdir())
ROBOTS = sorted(path.stem for path in (SAMPLES / "robots").glob("*.yaml"))
MEASURED = {"samples_per_second", "data_wait_share", "memory_gb", "tflops", "mfu"}


@pytest.fixture(autouse=True)
def samples(tmp_path, monkeypatch):
    """A copy of the samples to work in: paths inside them are relative to it."""
    threads = torch.get_num_threads()
    shutil.copytree(SAMPLES, tmp_path / "samples", symlinks=True)
    monkeypatch.chdir(tmp_path / "samples")
    yield tmp_path / "samples"
    torch.set_num_threads(threads)


def assert_close(ours, theirs, what=""):
    """Compare to 1e-5 of the largest value; integers, booleans and strings exactly."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, what
    if theirs.dtype.kind != "f":
        assert (ours == theirs).all(), what
        return
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max(), err_msg=what)


def assert_acts_as_before(checkpoint, answers, **options):
    """Ask a checkpoint what it was asked before."""
    observation, noise = read_observation(SAMPLES / answers)
    actions = observation.pop("actions")
    ours = vla.load(checkpoint, **options).infer(observation, noise=noise)["actions"]
    assert_close(ours, actions)


def keeps(now, before):
    """Whether a value is what it was; a mapping may have keys that there were not before."""
    if isinstance(before, dict) and isinstance(now, dict):
        return all(key in now and keeps(now[key], value) for key, value in before.items())
    if isinstance(before, list) and isinstance(now, list):
        return len(now) == len(before) and all(map(keeps, now, before))
    return now == before


def assert_keeps(values, before):
    """Check that every key of before still has its value, under its name or the one it has now."""
    wrong = {
        key: (value, values.get(RENAMED.get(key, key), "is not there"))
        for key, value in before.items()
        if key not in ("dtype", "output")
        and not keeps(values.get(RENAMED.get(key, key), "is not there"), value)
    }
    assert wrong == {}


def assert_computes_as_before(pipeline, folder):
    """Run a stored sample forward and back; values of resampled images may be off by one."""
    there = pipeline.forward(read_sample(SAMPLES / folder / "sample.npz"), torch.Generator().manual_seed(5))
    for values, file in ((there, "forward.npz"), (pipeline.inverse(there), "inverse.npz")):
        # Facts are what the tensors say, for the host; there were none before.
        ours = flat({key: value for key, value in values.items() if key != "facts"})
        before = read_arrays(SAMPLES / folder / file)
        assert ours.keys() == before.keys()
        for key, value in before.items():
            if folder == "pipelines/augment_images" and key.startswith("images/"):
                assert np.abs(np.asarray(ours[key]).astype(int) - value).max() <= 1, key
            else:
                assert_close(ours[key], value, key)


def records(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def assert_same_metrics(ours, before, only=None):
    """Compare every number that a run wrote and that is not a measurement of the machine."""
    assert [record["step"] for record in ours] == [record["step"] for record in before]
    for now, then in zip(ours, before, strict=True):
        for key in then.keys() - MEASURED if only is None else then.keys() & only:
            assert key in now, (then["step"], key)
            assert now[key] == pytest.approx(then[key], rel=1e-5, abs=1e-7), (then["step"], key)


# -- checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_acts_as_before(name):
    assert_acts_as_before(CHECKPOINTS[name], f"checkpoints/{name}.npz")


def test_weights_in_several_files_are_read():
    assert len(list(Path("checkpoints/pi05").glob("*.safetensors"))) == 5


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_config_means_what_it_meant(name):
    before = json.loads(Path(CHECKPOINTS[name], "config.json").read_text())
    ignored = ("transformers_version", "architectures", "dtype")
    before = flat({key: value for key, value in before.items() if key not in ignored}, dot=".")
    assert len(before) > 35
    assert_keeps(config_values(vla.AutoPolicy.from_pretrained(CHECKPOINTS[name]).config), before)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_saved_anew_acts_as_before(name):
    vla.AutoPolicy.from_pretrained(CHECKPOINTS[name]).save_pretrained("again")
    assert_acts_as_before("again", f"checkpoints/{name}.npz")


# -- conversions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONVERTED)
def test_conversion_writes_the_files_of_before(name):
    source, _, format = name.partition("_")
    assert main(["convert", CHECKPOINTS[source], "made", "--to", format]) == 0
    made, before = Path("made"), SAMPLES / "converted" / name
    files = sorted(str(path.relative_to(before)) for path in before.rglob("*") if path.is_file())
    assert sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()) == files
    for file in files:
        if file.endswith(".safetensors"):
            ours, theirs = load_file(made / file), load_file(before / file)
            assert ours.keys() == theirs.keys(), file
            assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == [], file
        elif file == "config.json":
            ours, theirs = (json.loads((folder / file).read_text()) for folder in (made, before))
            assert without_versions(ours) == without_versions(theirs)
        elif file != "pipeline.json":  # our own, whose keys may get other names
            assert json.loads((made / file).read_text()) == json.loads((before / file).read_text()), file


def without_versions(config):
    return {key: value for key, value in config.items() if key != "transformers_version"}


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_checkpoint_acts_as_before(name):
    """The header of its tensors also holds our own config under the keys of that commit."""
    source = name.partition("_")[0]
    assert_acts_as_before(f"converted/{name}", f"checkpoints/{source}.npz")


@pytest.mark.parametrize("name", CONVERTED)
def test_way_back_from_a_conversion_gives_the_checkpoint(name):
    source = name.partition("_")[0]
    assert main(["convert", f"converted/{name}", "back", "--to", "vla"]) == 0
    ours = vla.AutoPolicy.from_pretrained("back")
    theirs = vla.AutoPolicy.from_pretrained(CHECKPOINTS[source])
    assert {**config_values(ours.config), "dtype": None} == {**config_values(theirs.config), "dtype": None}
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[key]), key


# -- runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_run_resumes_as_if_it_had_not_been_stopped(name):
    overrides = []
    if name == "sharded":  # by two processes then, by one now
        overrides = ["train.accumulation=2"]
    assert main(["train", f"trained/{name}/recipe.yaml", *overrides, "--resume"]) == 0
    ours, whole = records(f"trained/{name}/run/metrics.jsonl"), records(f"trained/{name}/whole.jsonl")
    assert ours[:3] == whole[:3]
    only = {"loss", "action_loss", "learning_rate"} if name == "sharded" else None
    assert_same_metrics(ours, whole, only)


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        ("pi0", None),
        ("ema", None),
        ("lora", None),
        ("mixture", "arm"),
        ("mixture", "hand"),
        ("sharded", None),
    ],
)
def test_checkpoint_of_a_run_acts_as_before(name, pipeline):
    checkpoint = f"trained/{name}/run/checkpoints/last"
    assert_acts_as_before(checkpoint, f"trained/{name}/{pipeline or 'infer'}.npz", pipeline=pipeline)


def test_adapter_merges_with_its_base():
    assert main(["merge", "trained/lora/run/checkpoints/last", "merged"]) == 0
    assert_acts_as_before("merged", "trained/lora/infer.npz")


# -- recipes and robots -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_means_what_it_meant(name):
    path, before = Path("recipes", f"{name}.yaml"), RECIPES[name]
    needed = [] if before["recipe"]["data.mixture"] else ["data.path=datasets/arm"]
    recipe = load_recipe(path, [*needed, "output=out"])
    assert_keeps(recipe.flat(), before["recipe"])
    config = make_config(recipe.policy.type, dict(recipe.policy.config), recipe.policy.preset)
    assert_keeps(config_values(config), before["config"])


@pytest.mark.parametrize("name", LOSSES)
def test_recipe_trains_as_before(name):
    assert main(["train", f"recipes/{name}.yaml", "train.steps=2", "output=out"]) == 0
    assert_same_metrics(records("out/metrics.jsonl"), LOSSES[name])


@pytest.mark.parametrize("name", ROBOTS)
def test_robot_file_says_what_it_said(name):
    robot = load_robot(f"robots/{name}.yaml")
    for fact, value in json.loads(Path(f"robots/{name}/said.json").read_text()).items():
        now = robot.execution.model_dump() if fact == "execution" else getattr(robot, fact)
        assert json.loads(json.dumps(now)) == value, fact
    assert_computes_as_before(Pipeline(robot.transforms()), f"robots/{name}")


# -- pipelines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_transform_computes_what_it_computed(name):
    pipeline = Pipeline.load(f"pipelines/{name}")
    assert_computes_as_before(pipeline, f"pipelines/{name}")
    Path("again").mkdir()
    pipeline.save("again")
    assert_computes_as_before(Pipeline.load("again"), f"pipelines/{name}")


def test_every_transform_of_then_is_among_the_samples():
    files = (SAMPLES / "pipelines").glob("*/pipeline.json")
    assert len({json.loads(path.read_text())["steps"][0]["type"] for path in files}) == 13
